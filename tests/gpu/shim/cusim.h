// CUDA's words for plain C++: kernels of csrc/cuda compile with g++ and run on the CPU, one fiber a thread (block.h,
// warp.h, tensor.h). For tests alone. Not here: inline PTX, cooperative groups, blocks that wait for one another;
// csrc/cuda/device.h gives each instruction that has no word here a branch for the CPU.
#pragma once
#include <atomic>
#include <cmath>
#include <type_traits>

#include "tensor.h"

using cudaStream_t = struct CUstream_st*;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __ldg(p) (*(p))

#define threadIdx (cusim::sim.current->index)
#define blockIdx (cusim::sim.block_index)
#define blockDim (cusim::sim.block)
#define gridDim (cusim::sim.grid)
constexpr int warpSize = 32;

#define CUSIM_HERE (cusim::Place{__FILE__, __LINE__})
#define CUSIM_SHUFFLE(m, v, what, ...) \
  cusim::shuffle(                      \
      m, v, 32,                        \
      [=](int lane, int base) {        \
        (void)lane, (void)base;        \
        return __VA_ARGS__;            \
      },                               \
      what, CUSIM_HERE)
#define CUSIM_REDUCE(m, v, what, ...) cusim::reduce(m, v, [](auto a, auto b) { return __VA_ARGS__; }, what, CUSIM_HERE)
#define __syncthreads() cusim::barrier(CUSIM_HERE)
#define __syncthreads_or(p) cusim::barrier_or(p, CUSIM_HERE)
#define __syncwarp(...) cusim::sync_warp(0xffffffffu __VA_OPT__(&(__VA_ARGS__)), CUSIM_HERE)
#define __shfl_sync(m, v, s) CUSIM_SHUFFLE(m, v, "shfl", base + ((s) & 31))
#define __shfl_xor_sync(m, v, x) CUSIM_SHUFFLE(m, v, "shfl_xor", lane ^ (x))
#define __shfl_down_sync(m, v, d) CUSIM_SHUFFLE(m, v, "shfl_down", lane + static_cast<int>(d))
#define __shfl_up_sync(m, v, d) CUSIM_SHUFFLE(m, v, "shfl_up", lane - static_cast<int>(d))
#define __reduce_add_sync(m, v) CUSIM_REDUCE(m, v, "reduce_add", a + b)
#define __reduce_max_sync(m, v) CUSIM_REDUCE(m, v, "reduce_max", std::max(a, b))
#define __reduce_min_sync(m, v) CUSIM_REDUCE(m, v, "reduce_min", std::min(a, b))
#define __ballot_sync(m, p)                                                                                      \
  cusim::reduce(                                                                                                 \
      m, (p) ? 1u << (cusim::sim.current->id % 32) : 0u, [](unsigned a, unsigned b) { return a | b; }, "ballot", \
      CUSIM_HERE)
#define __any_sync(m, p) (__ballot_sync(m, p) != 0)
#define __all_sync(m, p) (__ballot_sync(m, p) == static_cast<unsigned>(m))
#define __popc(x) std::popcount(static_cast<unsigned>(x))
#define __brev(x) cusim::reversed_bits(x)
#define __ffs(x) __builtin_ffs(static_cast<int>(x))
#define __clz(x) std::countl_zero(static_cast<unsigned>(x))

namespace cusim {

inline unsigned reversed_bits(unsigned x) {
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= (x >> i & 1) << (31 - i);
  return out;
}

template <class T, class Change>
T atomic_change(T* p, Change change) {
  std::atomic_ref<T> shared(*p);
  T old = shared.load(std::memory_order_relaxed);
  while (!shared.compare_exchange_weak(old, change(old), std::memory_order_relaxed)) {
  }
  return old;
}

}  // namespace cusim

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return cusim::atomic_change(p, [=](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return cusim::atomic_change(p, [=](T old) { return std::max(old, v); });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return cusim::atomic_change(p, [=](T old) { return std::min(old, v); });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return cusim::atomic_change(p, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return cusim::atomic_change(p, [=](T old) { return old == expected ? v : old; });
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline float __int_as_float(int i) { return std::bit_cast<float>(i); }
inline int __float_as_int(float f) { return std::bit_cast<int>(f); }
inline float __uint_as_float(unsigned i) { return std::bit_cast<float>(i); }
inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
