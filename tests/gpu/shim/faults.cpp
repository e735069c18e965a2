// Kernels that are wrong, by name; the simulator, or the sanitizer that this is compiled with, has to say so. Exit code 1
// and the simulator's words on stderr, or 0 if it noticed nothing.
#include <cstdio>
#include <map>

#include "cusim.h"

namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;

__global__ void right(int* out) { out[threadIdx.x] = __shfl_xor_sync(kAll, static_cast<int>(threadIdx.x), 1); }
__global__ void lane_outside_its_mask(int* out) { out[threadIdx.x] = __shfl_sync(0xFFFFu, 1, 0); }
__global__ void reads_outside_the_mask(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xFFFFu, 1, 20);
}
__global__ void some_lanes_never_come(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __reduce_add_sync(kAll, 1);
}
__global__ void different_collectives(int* out) {
  out[threadIdx.x] = threadIdx.x % 2 ? __reduce_add_sync(kAll, 1) : __shfl_sync(kAll, 1, 0);
}
__global__ void different_barriers(int*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void barrier_of_some(int*) {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void too_much_shared(int* out) {
  static char key;
  out[0] = static_cast<int*>(cusim::shared_array(&key, 300'000))[0];
}

// A copy in flight, of a thread's own place of the shared memory.
struct alignas(16) Four {
  int of[4];
};
const Four kFrom[64] = {};
Four* copy(size_t shift = 0) {
  static char key;
  auto* const shared = static_cast<Four*>(cusim::shared_array(&key, sizeof kFrom));
  auto* const to = reinterpret_cast<char*>(shared + threadIdx.x) + shift;
  cusim::async_copy(to, kFrom + threadIdx.x, sizeof(Four) - shift, sizeof(Four) - shift);
  cusim::async_commit();
  return shared;
}
__global__ void right_copies(int* out) {
  for (int i = 0; i < 3; ++i) {
    const Four* shared = copy();
    cusim::async_wait(0);
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x ^ 1].of[0];
    __syncthreads();
  }
}
__global__ void copy_that_nobody_waits_for(int*) { copy(); }
__global__ void copy_that_is_not_aligned(int*) {
  copy(4);
  cusim::async_wait(0);
}
__global__ void copy_that_is_read_before_it_is_there(int* out) {
  out[threadIdx.x] = copy()[threadIdx.x].of[0];
  cusim::async_wait(0);
}
__global__ void copy_that_others_read_without_a_barrier(int* out) {
  const Four* shared = copy();
  cusim::async_wait(0);
  out[threadIdx.x] = shared[threadIdx.x ^ 1].of[0];
}
__global__ void copy_to_where_others_still_read(int* out) {
  const Four* shared = copy();
  cusim::async_wait(0);
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x ^ 1].of[0];
  copy();
  __syncthreads();  // too late: the copy may have happened
  cusim::async_wait(0);
}

// What one thread does on its way from one barrier to the next, the others may see or not.
template <class Barrier>
void ahead(int* out, Barrier barrier) {
  static char key;
  int* const shared = static_cast<int*>(cusim::shared_array(&key, sizeof(int)));
  if (threadIdx.x == 0) *shared = 0;
  barrier();
  if (threadIdx.x == 0) *shared = 1;
  if (threadIdx.x == 9) out[0] = *shared;
  barrier();
}
__global__ void write_between_two_barriers(int* out) {
  ahead(out, [] { __syncthreads(); });
}
__global__ void write_between_two_barriers_of_a_warp(int* out) {
  ahead(out, [] { __syncwarp(); });
}

struct Fault {
  void (*kernel)(int*);
  dim3 grid = 1, block = 64;
};
const std::map<std::string, Fault> kFaults = {
    {"right", {right}},
    {"lane_outside_its_mask", {lane_outside_its_mask}},
    {"reads_outside_the_mask", {reads_outside_the_mask}},
    {"some_lanes_never_come", {some_lanes_never_come}},
    {"different_collectives", {different_collectives}},
    {"different_barriers", {different_barriers}},
    {"barrier_of_some", {barrier_of_some}},
    {"too_much_shared", {too_much_shared}},
    {"right_copies", {right_copies}},
    {"copy_that_nobody_waits_for", {copy_that_nobody_waits_for}},
    {"copy_that_is_not_aligned", {copy_that_is_not_aligned}},
    {"copy_that_is_read_before_it_is_there", {copy_that_is_read_before_it_is_there}},
    {"copy_that_others_read_without_a_barrier", {copy_that_others_read_without_a_barrier}},
    {"copy_to_where_others_still_read", {copy_to_where_others_still_read}},
    {"write_between_two_barriers", {write_between_two_barriers}},
    {"write_between_two_barriers_of_a_warp", {write_between_two_barriers_of_a_warp, 1, 32}},
    {"too_many_threads", {right, 1, 1025}},
    {"too_high_a_grid", {right, {1, 65536}, 64}},
};

}  // namespace

int main(int, char** argv) {
  const Fault& fault = kFaults.at(argv[1]);
  int out[64];
  try {
    cusim::launch(fault.grid, fault.block, 0, [&] { fault.kernel(out); });
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
