// What all kernels share: one source for nvcc and, in tests, for the CPU (tests/gpu/shim), where each instruction that plain
// C++ has no word for takes another branch.
#pragma once
#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#define BDKERNELS_SHARED(T, name, count) __shared__ T name[count]
#define BDKERNELS_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define BDKERNELS_UNROLL _Pragma("unroll")
#define BDKERNELS_NO_UNROLL _Pragma("unroll 1")
#else
#include "cusim.h"
// Not `static`: arrays of the simulator have bounds, and garbage in them at first.
#define BDKERNELS_SHARED(T, name, count) \
  static char name##_key;                \
  T* const name = static_cast<T*>(cusim::shared_array(&name##_key, sizeof(T) * (count)))
#define BDKERNELS_DYNAMIC_SHARED(name) unsigned char* const name = reinterpret_cast<unsigned char*>(cusim::sim.shared)
#define BDKERNELS_UNROLL
#define BDKERNELS_NO_UNROLL
#endif

#include <cmath>
#include <type_traits>

#include "../core/order.h"
#include "kernels.h"

namespace bdkernels::cuda {

constexpr int kWarp = 32;
constexpr int kBanks = 32;  // of shared memory, each a word of 4 bytes wide
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// ---- host ----

#ifdef __CUDACC__
inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("bdkernels: CUDA: ") + cudaGetErrorString(error));
}

template <class Kernel>
void allow_shared(Kernel* kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}
#endif

// Queue a kernel; an empty grid queues nothing. Throws if the launch is refused; what goes wrong later shows at the next
// synchronisation, as with every CUDA kernel.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef __CUDACC__
  allow_shared(kernel, shared_bytes);
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  check(cudaGetLastError());
#else
  (void)stream;
  cusim::launch(grid, block, shared_bytes, [=] { kernel(arguments...); });
#endif
}

// How many blocks of a kernel the current GPU holds at once.
template <class... Parameters>
int64_t places(void (*kernel)(Parameters...), int threads, size_t shared_bytes) {
#ifdef __CUDACC__
  int device = 0, multiprocessors = 0, blocks = 0;
  allow_shared(kernel, shared_bytes);
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
  return int64_t{multiprocessors} * (blocks > 0 ? blocks : 1);
#else
  (void)kernel, (void)threads, (void)shared_bytes;
  return 264;  // as an H100 does with two on each multiprocessor
#endif
}

inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Items whose type is known.
template <class T>
struct Table {
  using Element = T;

  const T* rows;
  const T* bias;  // or null
  int64_t n, d, stride;

  BDKERNELS_HD const T* row(int64_t item) const { return rows + item * stride; }
};

template <class T>
BDKERNELS_HD Table<T> table_of(const Items& items) {
  return {static_cast<const T*>(items.data), static_cast<const T*>(items.bias), items.n, items.d, items.stride};
}

// Calls run(T{}) for a dtype.
template <class Run>
auto with_element(Dtype dtype, Run run) {
  return dtype == Dtype::kFloat16 ? run(Half{}) : dtype == Dtype::kBfloat16 ? run(Bfloat16{}) : run(0.0f);
}

// Calls run(Table<T>) for the dtype of the items.
template <class Run>
void with_table(const Items& items, Run run) {
  with_element(items.dtype, [&](auto zero) { run(table_of<decltype(zero)>(items)); });
}

// ---- device ----

// To float32, exactly, in one instruction where there is one.
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Bfloat16 x) { return to_float(x); }
__device__ inline float widen(Half x) {
#ifdef __CUDA_ARCH__
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
#else
  return to_float(x);
#endif
}

template <class T>
__device__ float bias_of(const Table<T>& items, int64_t item) {
  return items.bias ? widen(items.bias[item]) : 0.0f;
}

// One score by one thread (core/score.h). For scattered items; a tile of the catalog is product.h's.
template <class T>
__device__ float dot(const float* user, const Table<T>& items, int64_t item) {
  const T* row = items.row(item);
  float sum = bias_of(items, item);
  for (int64_t k = 0; k < items.d; ++k) sum = __fmaf_rn(user[k], widen(row[k]), sum);
  return sum;
}

// ---- order ----

// Order keys as torch sorts them, signed.
__device__ inline int64_t signed_key(float score, int64_t id) {
  return static_cast<int64_t>(order_key(score, id)) ^ INT64_MIN;
}
__device__ inline float score_of_key(int64_t signed_key) {
  return order_score(static_cast<uint64_t>(signed_key ^ INT64_MIN));
}
__device__ inline int64_t id_of_key(int64_t signed_key) { return order_id(static_cast<uint64_t>(signed_key)); }

// How many of the rising values [n] are less than one.
template <class V, class Index>
__device__ Index position(const V* values, Index n, V value) {
  Index low = 0;
  BDKERNELS_NO_UNROLL  // it takes as few registers as it can: in `rank` they are the product's
      while (n > 0) {
    const Index half = n / 2;
    if (values[low + half] < value) {
      low += half + 1;
      n -= half + 1;
    } else {
      n = half;
    }
  }
  return low;
}

// ---- tensor cores ----

struct Tf32 {};

// Rounded to the nearest of 11 significant bits, away from zero where two are as near.
__device__ inline uint32_t to_tf32(float x) {
#ifdef __CUDA_ARCH__
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(x));
  return out;
#elif !defined(__CUDACC__)
  return cusim::to_tf32(x);
#endif
}

// Two values rounded to the nearest, the first in the lower half.
template <class Operand>
__device__ uint32_t to_pair(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t out;
  if constexpr (std::is_same_v<Operand, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  }
  return out;
#elif !defined(__CUDACC__)
  const auto round = std::is_same_v<Operand, Half> ? cusim::to_float16 : cusim::to_bfloat16;
  return round(first) | uint32_t{round(second)} << 16;
#endif
}

// Adds to a warp's [16, 8] sums the product of [16, K] and [K, 8] operands, K = 8 in tf32 and 16 in 16 bits. Which lane
// holds what: "Matrix Fragments for mma.m16n8k8" and "... m16n8k16" in the PTX ISA. A lane has rows l / 4 and l / 4 + 8 of
// `a` and of the sums, column l / 4 of `b`, and columns l % 4 * 2 and the next of the sums.
template <class Operand>
__device__ void mma(const uint32_t (&a)[4], const uint32_t (&b)[2], float& s0, float& s1, float& s2, float& s3) {
#ifdef __CUDA_ARCH__
#define BDKERNELS_MMA(kind)                                                                                \
  asm volatile("mma.sync.aligned." kind " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(s0), "+f"(s1), "+f"(s2), "+f"(s3)                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<Operand, Tf32>) {
    BDKERNELS_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  } else if constexpr (std::is_same_v<Operand, Half>) {
    BDKERNELS_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    BDKERNELS_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  }
#undef BDKERNELS_MMA
#elif !defined(__CUDACC__)
  constexpr auto kind = std::is_same_v<Operand, Tf32>   ? cusim::Operand::kTf32
                        : std::is_same_v<Operand, Half> ? cusim::Operand::kFloat16
                                                        : cusim::Operand::kBfloat16;
  float* const sums[4] = {&s0, &s1, &s2, &s3};
  cusim::mma(kind, a, b, sums, CUSIM_HERE);
#endif
}

// ---- reductions ----

// The sum over a warp, in every lane of it; the order of the additions is fixed.
template <class V>
__device__ V warp_sum(V v) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(kAllLanes, v, distance);
  return v;
}

// The largest number of a warp that is not NaN, in every lane of it.
__device__ inline float warp_max(float v) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) v = std::fmax(v, __shfl_xor_sync(kAllLanes, v, distance));
  return v;
}

// `nan_at` holds -1, the largest unsigned integer, or the flat index of the first score that is NaN.
__device__ inline void report_nan(int64_t* nan_at, int64_t index) {
  atomicMin(reinterpret_cast<unsigned long long*>(nan_at), static_cast<unsigned long long>(index));
}

__device__ inline void add(int64_t* counter, int64_t by) {  // wraps as it shall for a negative `by`
  atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(by));
}

// What was found fine, not 0, is so no more.
__device__ inline void deny(int64_t* fine) { atomicMin(reinterpret_cast<unsigned long long*>(fine), 0ull); }

// ---- shared memory by its own addresses, of 32 bits: in those of all memory, each access would begin with a sum ----

__device__ inline uint32_t shared_address(const void* shared) {
#ifdef __CUDA_ARCH__
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
#elif !defined(__CUDACC__)
  return cusim::shared_address(shared);
#endif
}

__device__ inline float load_shared(uint32_t at) {
#ifdef __CUDA_ARCH__
  float out;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(out) : "r"(at));
  return out;
#elif !defined(__CUDACC__)
  return *cusim::shared_access<float>(at, false);
#endif
}

// Adds 1 to an integer.
__device__ inline void count_shared(uint32_t at) {
#ifdef __CUDA_ARCH__
  asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(at) : "memory");
#elif !defined(__CUDACC__)
  atomicAdd(cusim::shared_access<uint32_t>(at, true), 1u);
#endif
}

// 16, 8 or 4 bytes from global to shared memory, both aligned to as many, while the thread goes on; zeros if they are not
// there, and then nothing is read.
template <int kBytes>
__device__ void copy_async(void* shared, const void* global, bool there) {
#ifdef __CUDA_ARCH__
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  // .cg, which leaves L1 alone, takes 16 bytes only.
#define BDKERNELS_COPY(cache)                                                   \
  asm volatile("{.reg .pred absent; setp.eq.s32 absent, %2, 0; cp.async." cache \
               ".shared.global [%0], [%1], %3, absent;}" ::"r"(to),             \
               "l"(global), "r"(static_cast<int>(there)), "n"(kBytes)           \
               : "memory")
  if constexpr (kBytes == 16) {
    BDKERNELS_COPY("cg");
  } else {
    BDKERNELS_COPY("ca");
  }
#undef BDKERNELS_COPY
#elif !defined(__CUDACC__)
  cusim::async_copy(shared, global, kBytes, there ? kBytes : 0);
#endif
}

// What this thread copied since the last commit is one group.
__device__ inline void copies_commit() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
  cusim::async_commit();
#endif
}

// Until all but this thread's last kPending groups are there; other threads see them after a barrier.
template <int kPending>
__device__ void copies_wait() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
  cusim::async_wait(kPending);
#endif
}

}  // namespace bdkernels::cuda
