// The processor's float mode: rounding, flushing of subnormals to zero, and which exceptions trap. It belongs to a thread,
// and a caller or another library may have changed it; scores and comparisons must not depend on that.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace bdkernels::cpu {

// The mode that IEEE 754 has by default, in this thread, while it lives; then the one that was there, with its flags.
class DefaultFloatMode {
 public:
#if defined(__x86_64__)
  DefaultFloatMode() : before_(_mm_getcsr()) { _mm_setcsr(kDefault); }
  ~DefaultFloatMode() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
  DefaultFloatMode() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}) : "memory");
  }
  ~DefaultFloatMode() { asm volatile("msr fpcr, %0" : : "r"(before_) : "memory"); }
#else
  DefaultFloatMode() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatMode() { std::fesetenv(&before_); }
#endif
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr unsigned kDefault = 0x1F80;  // round to nearest, all exceptions masked, no flushing
  unsigned before_;
#elif defined(__aarch64__)
  uint64_t before_;
#else
  std::fenv_t before_;
#endif
};

// Runs f in the default mode. Not inlined: a compiler may move arithmetic across a change of the mode, but not across a
// call.
template <class F, class... Args>
[[gnu::noinline]] decltype(auto) call_apart(const F& f, Args&&... args) {
  return f(static_cast<Args&&>(args)...);
}

template <class F, class... Args>
decltype(auto) in_default_mode(const F& f, Args&&... args) {
  const DefaultFloatMode mode;
  return call_apart(f, static_cast<Args&&>(args)...);
}

}  // namespace bdkernels::cpu
