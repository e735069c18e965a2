// A fiber is one CUDA thread: a stack of its own, entered and left by swapping stack pointers, on one thread of the system.
// The address and thread sanitizers are told of every switch, so each fiber has its own stack bounds and its own clock.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <functional>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CUSIM_ADDRESS(...) __VA_ARGS__
#else
#define CUSIM_ADDRESS(...)
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define CUSIM_THREAD(...) __VA_ARGS__
#else
#define CUSIM_THREAD(...)
#endif
// The simulator's own state is shared by all fibers and must not look like the kernel's.
#define CUSIM_UNWATCHED __attribute__((no_sanitize("thread"), noinline))

// Saves the registers that a call must keep and the stack pointer, and loads those of the other stack (System V, x86-64).
extern "C" void cusim_switch(void** save, void* load);
asm(R"(.text
.weak cusim_switch
.type cusim_switch,@function
cusim_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
.size cusim_switch,.-cusim_switch
)");

namespace cusim {

constexpr size_t kStackBytes = 256 * 1024;

struct Stack {
  char* bottom = nullptr;
  void* clock = nullptr;  // the thread sanitizer's

  CUSIM_UNWATCHED void allocate() {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    bottom = static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0));
    if (bottom == MAP_FAILED) abort();
    CUSIM_THREAD(clock = __tsan_create_fiber(0);)
  }
};

// The stack that fibers are started from, and what the sanitizers need to come back to it.
struct Host {
  void* pointer = nullptr;
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
  void* clock = nullptr;
};
inline Host host;

class Coroutine {
 public:
  // `body` runs at the first `enter`; when it ends, `left` is called on the fiber's stack and must not return.
  CUSIM_UNWATCHED void prepare(const Stack& stack, void (*entry)()) {
    stack_ = stack;
    void** p = reinterpret_cast<void**>(stack.bottom + kStackBytes - 64);
    *--p = nullptr;
    *--p = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--p = nullptr;
    pointer_ = p;
    fake_stack_ = nullptr;
  }

  CUSIM_UNWATCHED void enter() {
    CUSIM_ADDRESS(__sanitizer_start_switch_fiber(&host.fake_stack, stack_.bottom, kStackBytes);)
    CUSIM_THREAD(__tsan_switch_to_fiber(stack_.clock, __tsan_switch_to_fiber_no_sync);)
    cusim_switch(&host.pointer, pointer_);
    CUSIM_ADDRESS(__sanitizer_finish_switch_fiber(host.fake_stack, nullptr, nullptr);)
  }

  // First thing on a new stack.
  CUSIM_UNWATCHED static void entered() {
    CUSIM_ADDRESS(__sanitizer_finish_switch_fiber(nullptr, &host.bottom, &host.size);)
  }

  CUSIM_UNWATCHED void leave(bool for_good) {
    (void)for_good;
    CUSIM_ADDRESS(__sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, host.bottom, host.size);)
    CUSIM_THREAD(__tsan_switch_to_fiber(host.clock, __tsan_switch_to_fiber_no_sync);)
    cusim_switch(&pointer_, host.pointer);
    CUSIM_ADDRESS(__sanitizer_finish_switch_fiber(fake_stack_, &host.bottom, &host.size);)
  }

 private:
  Stack stack_;
  void* pointer_ = nullptr;
  void* fake_stack_ = nullptr;
};

}  // namespace cusim
