// One choice a process, at the first call.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "simd.h"

namespace bdkernels::cpu {
namespace {

const Simd& choose() {
  const char* asked = std::getenv("BDKERNELS_ISA");
  const bool any = asked == nullptr || *asked == '\0';
#if defined(BDKERNELS_X86)
  if ((any || !std::strcmp(asked, "avx512")) && __builtin_cpu_supports("avx512f")) return avx512_simd();
  if ((any || !std::strcmp(asked, "avx2")) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2_simd();
  }
#endif
  if (any || !std::strcmp(asked, "portable")) return portable_simd();
  throw std::runtime_error(std::string("BDKERNELS_ISA: expected avx512, avx2 or portable, one that this CPU has; got '") +
                           asked + "'");
}

}  // namespace

const Simd& simd() {
  static const Simd& chosen = choose();
  return chosen;
}

}  // namespace bdkernels::cpu
