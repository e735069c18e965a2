// Kernels that are wrong, by name; the simulator has to say so. Exit code 1 and its words on stderr, or 0 if it noticed
// nothing.
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
