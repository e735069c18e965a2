// A launch: its blocks one after another, in a block one fiber a thread, with barriers, shared memory and asynchronous
// copies.
//
// Wrong kernels are told by a std::runtime_error: threads of a block at different barriers, or at one that others have left
// behind by returning; deadlocks; asynchronous copies that nobody waits for; launches that no GPU would take. Shared memory
// starts as garbage and has exact bounds under the address sanitizer. CUSIM_SEED shuffles the order of blocks and threads.
// An asynchronous copy happens at some time from the instruction to the wait for it: the sanitizers see it at both ends, and
// its target is garbage in between, poisoned under the address sanitizer. CUSIM_ACCESSES names a file to which the addresses
// that the instructions of a warp ask shared memory for are added (wavefronts.py reads it).
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};

namespace cusim {

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

struct Place {
  const char* file = "";
  int line = 0;
};

struct Copy {
  char* to;
  const char* from;
  size_t size, valid;  // bytes past `valid` become 0
  int group;
};

struct Thread {
  Coroutine coroutine;
  State state = State::kReady;
  unsigned id = 0;
  uint3 index{};
  Place at;
  const void* waits_for = nullptr;
  Copy copies[64];
  int first_copy = 0, n_copies = 0, group = 0;
  unsigned n_accesses = 0;
};

// By 32-bit addresses to shared memory, of one block: what each thread's first instruction asks for, then its second, ...
struct Accesses {
  FILE* file = nullptr;  // or null: nobody wants to know
  uint32_t (*addresses)[1024] = nullptr;
  unsigned room = 0;
};

// The lanes of one mask meet: each brings 64 bits. Two generations, so that nobody overwrites what another has yet to read.
struct Meeting {
  unsigned mask = 0, arrived = 0, generation = 0;
  Place at;
  const char* what = nullptr;
  uint64_t values[2][32];
  char fences[2];  // addresses for the thread sanitizer
};
constexpr int kMeetings = 8;

struct Warp {
  Meeting meetings[kMeetings];
  int n = 0;
};

constexpr size_t kSharedBytes = 1 << 19;  // of address space: arrays are spread out so that their neighbours are guarded
constexpr size_t kSharedLimit = 232448;   // what a block of sm_90 may have
constexpr unsigned kMaxThreads = 1024;

// One launch at a time. What fibers touch is plain arrays: the thread sanitizer watches the standard library's.
struct Launch {
  dim3 grid, block;
  uint3 block_index{};
  unsigned n = 0, done = 0, at_barrier = 0;
  uint64_t blocks = 0;
  const std::function<void()>* body = nullptr;
  Thread* threads = nullptr;
  Thread* current = nullptr;
  Warp* warps = nullptr;
  Stack stacks[2 * kMaxThreads];
  char* shared = nullptr;
  size_t dynamic_bytes = 0, shared_top = 0, shared_used = 0, shared_dirty = 0;
  struct {
    const void* key;
    size_t at;
  } arrays[32];
  int n_arrays = 0;
  Accesses accesses;
  const char* fault = nullptr;
  Place fault_at;
  // Addresses for the thread sanitizer. Two of barriers, by turns: a thread that goes on learns nothing of what others did
  // on their way to the next.
  char barriers[2] = {}, start = 0, end = 0;
  unsigned generation = 0;  // of barriers
  bool any[2] = {};         // of what threads have brought to each of two barriers
};
inline Launch sim;

// On the host's stack.
[[noreturn]] inline void raise(const std::string& what, Place at) {
  const auto triple = [](uint3 i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
  };
  std::string text = "simulated GPU: " + what + " at " + at.file + ":" + std::to_string(at.line);
  text += ", block " + triple(sim.block_index);
  if (sim.current) text += " thread " + triple(sim.current->index);
  sim.current = nullptr;
  throw std::runtime_error(text);
}

// On a fiber's stack, which is given up: the host raises.
[[noreturn]] CUSIM_UNWATCHED inline void fail(const char* what, Place at) {
  sim.fault = what;
  sim.fault_at = at;
  sim.current->coroutine.leave(true);
  abort();
}

CUSIM_UNWATCHED inline void run_thread() {
  Coroutine::entered();
  Thread* me = sim.current;
  CUSIM_THREAD(__tsan_acquire(&sim.start);)
  (*sim.body)();
  CUSIM_THREAD(__tsan_release(&sim.end);)
  if (me->n_copies) fail("an asynchronous copy that nobody has waited for", {__FILE__, __LINE__});
  me->state = State::kDone;
  sim.done++;
  me->coroutine.leave(true);
  abort();
}

CUSIM_UNWATCHED inline void barrier(Place at) {
  Thread* me = sim.current;
  me->state = State::kAtBarrier;
  me->at = at;
  sim.at_barrier++;
  [[maybe_unused]] char* const fence = &sim.barriers[sim.generation % 2];
  CUSIM_THREAD(__tsan_release(fence);)
  me->coroutine.leave(false);
  CUSIM_THREAD(__tsan_acquire(fence);)
}

CUSIM_UNWATCHED inline bool barrier_or(bool mine, Place at) {
  bool* const any = &sim.any[sim.generation % 2];
  *any |= mine;
  barrier(at);
  return *any;
}

// ---- shared memory ----

// Not memset, which the sanitizers watch.
CUSIM_UNWATCHED inline void fill_with_garbage(char* p, size_t n) {
  asm volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(0xA5) : "memory");
}

CUSIM_UNWATCHED inline void fresh_shared_memory() {
  // Fresh pages have no history, which the thread sanitizer would take for the last block's.
  CUSIM_THREAD(if (sim.shared) munmap(sim.shared, kSharedBytes); sim.shared = nullptr;)
  if (!sim.shared) {
    sim.shared = static_cast<char*>(mmap(nullptr, kSharedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (sim.shared == MAP_FAILED) abort();
    sim.shared_dirty = kSharedBytes;
  }
  CUSIM_ADDRESS(__asan_unpoison_memory_region(sim.shared, kSharedBytes);)
  fill_with_garbage(sim.shared, sim.shared_dirty);
  CUSIM_ADDRESS(__asan_poison_memory_region(sim.shared + sim.dynamic_bytes, kSharedBytes - sim.dynamic_bytes);)
  sim.shared_top = sim.shared_used = sim.dynamic_bytes;
  sim.n_arrays = 0;
  sim.shared_dirty = sim.dynamic_bytes;
}

// A static array of the block, told from others by its key; the first thread that comes makes it.
CUSIM_UNWATCHED inline void* shared_array(const void* key, size_t bytes) {
  for (int i = 0; i < sim.n_arrays; ++i) {
    if (sim.arrays[i].key == key) return sim.shared + sim.arrays[i].at;
  }
  const size_t at = (sim.shared_top + 63) / 64 * 64 + 64;
  sim.shared_used += bytes;
  if (at + bytes > kSharedBytes || sim.shared_used > kSharedLimit || sim.n_arrays == 32) {
    fail("too much shared memory", {__FILE__, __LINE__});
  }
  CUSIM_ADDRESS(__asan_unpoison_memory_region(sim.shared + at, bytes);)
  sim.arrays[sim.n_arrays++] = {key, at};
  sim.shared_top = sim.shared_dirty = at + bytes;
  return sim.shared + at;
}

// Addresses as of the shared window: bytes from its beginning.
CUSIM_UNWATCHED inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(static_cast<const char*>(shared) - sim.shared);
}

CUSIM_UNWATCHED inline void note_access(uint32_t address) {
  Accesses& all = sim.accesses;
  const unsigned number = sim.current->n_accesses++;
  if (number >= all.room) {
    const unsigned room = 2 * number + 64;
    all.addresses = static_cast<uint32_t (*)[1024]>(std::realloc(all.addresses, room * sizeof *all.addresses));
    for (; all.room < room; ++all.room) std::fill_n(all.addresses[all.room], 1024, ~0u);
  }
  all.addresses[number][sim.current->id] = address;
}

// A row of 32 for each instruction of a warp: addresses in bytes, plus 1 for what counts there; the largest integer where a
// lane takes no part.
CUSIM_UNWATCHED inline void write_accesses() {
  Accesses& all = sim.accesses;
  unsigned most = 0;
  for (unsigned i = 0; i < sim.n; ++i) most = std::max(most, sim.threads[i].n_accesses);
  for (unsigned number = 0; number < most; ++number) {
    std::fwrite(all.addresses[number], sizeof(uint32_t), (sim.n + 31) / 32 * 32, all.file);
    std::fill_n(all.addresses[number], 1024, ~0u);
  }
}

// Where an instruction reads or, if it `counts`, adds to shared memory by its address.
template <class T>
CUSIM_UNWATCHED T* shared_access(uint32_t address, bool counts) {
  if (sim.accesses.file) note_access(address + counts);
  return reinterpret_cast<T*>(sim.shared + address);
}

// ---- asynchronous copies: done by the thread that waits for them, when it waits ----

inline void perform(const Copy& copy) {                         // watched: it is the kernel's access
  if (copy.valid) std::memcpy(copy.to, copy.from, copy.valid);  // of an empty table, `from` may be null
  std::memset(copy.to + copy.valid, 0, copy.size - copy.valid);
}

CUSIM_UNWATCHED inline void async_copy(void* to, const void* from, size_t size, size_t valid) {
  Thread* me = sim.current;
  if (me->n_copies == 64) fail("more than 64 asynchronous copies in flight in one thread", {__FILE__, __LINE__});
  if (reinterpret_cast<uintptr_t>(to) % size || reinterpret_cast<uintptr_t>(from) % size || valid > size) {
    fail("an asynchronous copy that is not aligned, or of more bytes than it has", {__FILE__, __LINE__});
  }
  const Copy copy{static_cast<char*>(to), static_cast<const char*>(from), size, valid, me->group};
  me->copies[(me->first_copy + me->n_copies++) % 64] = copy;
  perform(copy);
  fill_with_garbage(copy.to, size);
  CUSIM_ADDRESS(__asan_poison_memory_region(copy.to, size);)
}

CUSIM_UNWATCHED inline void async_commit() { sim.current->group++; }

// All but the last `pending` groups have arrived.
CUSIM_UNWATCHED inline void async_wait(int pending) {
  Thread* me = sim.current;
  for (; me->n_copies && me->copies[me->first_copy].group < me->group - pending; me->n_copies--) {
    CUSIM_ADDRESS(__asan_unpoison_memory_region(me->copies[me->first_copy].to, me->copies[me->first_copy].size);)
    perform(me->copies[me->first_copy]);
    me->first_copy = (me->first_copy + 1) % 64;
  }
}

// ---- launch ----

extern "C" {
inline __attribute__((used, visibility("default"))) int64_t cusim_launches = 0;  // of all kernels so far
}

CUSIM_UNWATCHED inline void open_barrier() {
  Thread* first = nullptr;
  for (unsigned i = 0; i < sim.n; ++i) {
    Thread& t = sim.threads[i];
    if (t.state != State::kAtBarrier) continue;
    if (first && first->at.line != t.at.line) raise("threads of one block wait at different barriers", first->at);
    first = &t;
  }
  if (sim.done) raise("a barrier after some threads of the block have returned", first->at);
  sim.at_barrier = 0;
  sim.generation++;
  sim.any[sim.generation % 2] = false;
  for (unsigned i = 0; i < sim.n; ++i) sim.threads[i].state = State::kReady;
}

CUSIM_UNWATCHED inline void run_block(uint3 index, std::vector<unsigned>& order, std::mt19937* shuffle) {
  sim.block_index = index;
  sim.done = sim.at_barrier = 0;
  sim.any[sim.generation % 2] = false;
  sim.current = nullptr;
  fresh_shared_memory();
  for (unsigned w = 0; w < (sim.n + 31) / 32; ++w) sim.warps[w].n = 0;
  for (unsigned i = 0; i < sim.n; ++i) {
    Stack& stack = sim.stacks[2 * i + sim.blocks % 2];  // alternating clocks leave neighbouring blocks unordered
    if (!stack.bottom) stack.allocate();
    Thread& t = sim.threads[i];
    t.state = State::kReady;
    t.id = i;
    t.index = {i % sim.block.x, i / sim.block.x % sim.block.y, i / sim.block.x / sim.block.y};
    t.first_copy = t.n_copies = t.group = 0;
    t.n_accesses = 0;
    t.coroutine.prepare(stack, run_thread);
  }
  sim.blocks++;
  CUSIM_THREAD(__tsan_release(&sim.start);)
  while (sim.done < sim.n) {
    bool progress = false;
    if (shuffle) std::shuffle(order.begin(), order.end(), *shuffle);
    for (unsigned i : order) {
      if (sim.threads[i].state != State::kReady) continue;
      progress = true;
      sim.current = &sim.threads[i];
      sim.current->coroutine.enter();
      if (sim.fault) raise(std::exchange(sim.fault, nullptr), sim.fault_at);
    }
    sim.current = nullptr;
    if (sim.at_barrier && sim.at_barrier + sim.done == sim.n) {
      open_barrier();
    } else if (!progress) {
      for (unsigned i = 0; i < sim.n; ++i) {
        if (sim.threads[i].state == State::kDone) continue;
        sim.current = &sim.threads[i];
        raise("a barrier or warp collective is not reached by every thread", sim.threads[i].at);
      }
    }
  }
  if (sim.accesses.file) write_accesses();
}

template <class Body>
CUSIM_UNWATCHED void launch(dim3 grid, dim3 block, size_t dynamic_bytes, Body run) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
  const bool fits = grid.x <= 0x7FFFFFFFu && grid.y <= 65535 && grid.z <= 65535 && block.z <= 64 && threads <= kMaxThreads;
  if (!fits || !threads || !blocks) raise("invalid launch configuration", {});
  if (dynamic_bytes > kSharedLimit) raise("too much dynamic shared memory", {});
  if (!sim.threads) sim.threads = new Thread[kMaxThreads], sim.warps = new Warp[kMaxThreads / 32];
  const std::function<void()> body = run;
  cusim_launches++;
  sim.grid = grid;
  sim.block = block;
  sim.n = static_cast<unsigned>(threads);
  sim.dynamic_bytes = dynamic_bytes;
  sim.shared_dirty = kSharedBytes;
  sim.body = &body;
  CUSIM_THREAD(host.clock = __tsan_get_current_fiber();)
  const char* accesses = std::getenv("CUSIM_ACCESSES");
  if (accesses && !(sim.accesses.file = std::fopen(accesses, "ab"))) raise("no file for CUSIM_ACCESSES", {});
  const char* seed = std::getenv("CUSIM_SEED");
  std::mt19937 random(seed ? std::atoi(seed) : 0);
  std::vector<unsigned> block_order(blocks), thread_order(threads);
  for (unsigned i = 0; i < blocks; ++i) block_order[i] = i;
  for (unsigned i = 0; i < threads; ++i) thread_order[i] = i;
  if (seed) std::shuffle(block_order.begin(), block_order.end(), random);
  for (unsigned i : block_order) {
    run_block({i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y}, thread_order, seed ? &random : nullptr);
  }
  CUSIM_THREAD(__tsan_acquire(&sim.end);)
  if (accesses) std::fclose(std::exchange(sim.accesses.file, nullptr));
}

}  // namespace cusim
