// What the bindings of the CUDA stages share. They are built twice: for CUDA tensors, and with BDKERNELS_SIMULATION for CPU
// tensors, whose kernels then run in the simulator (tests/gpu/shim).
#pragma once
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "../cuda/kernels.h"
#include "arguments.h"

#ifdef BDKERNELS_SIMULATION
#define BDKERNELS_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(bdkernels_cuda, CPU, m)
#else
#define BDKERNELS_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(bdkernels_cuda, CUDA, m)
#endif

namespace bdkernels::binding {

// While it lives, allocations and launches go to the device of a tensor; `stream` is torch's current one there.
class OnDevice {
 public:
#ifdef BDKERNELS_SIMULATION
  explicit OnDevice(const Tensor&) {}
  cuda::Stream stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& t) : guard_(t.get_device_index()), device_(t.get_device_index()) {}

  cuda::Stream stream() const {
    // Asked of the loader: this library also loads beside a torch without CUDA, and a weak symbol would stay null for ever.
    using Current = AOTITorchError (*)(int32_t, void**);
    static const Current current = [] {
      void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
      return torch_cuda ? reinterpret_cast<Current>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream")) : nullptr;
    }();
    STD_TORCH_CHECK(current != nullptr, "bdkernels: this torch has no CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(current(device_, &stream));
    return static_cast<cuda::Stream>(stream);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t device_;
#endif
};

// [] int64 on the tensor's device, -1: no score was NaN so far.
inline Tensor no_nan(const Tensor& like) {
  Tensor nan_at = torch::stable::new_empty(like, {}, ScalarType::Long);
  torch::stable::fill_(nan_at, -1);
  return nan_at;
}

template <class T>
T* out_of(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace bdkernels::binding
