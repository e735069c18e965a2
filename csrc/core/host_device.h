// Functions of this folder run on the CPU and inside CUDA kernels alike.
#pragma once
#ifdef __CUDACC__
#define BDKERNELS_HD __host__ __device__
#else
#define BDKERNELS_HD
#endif
