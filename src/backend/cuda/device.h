#pragma once

/// What every file of the CUDA backend needs of the runtime. A kernel's launcher enqueues on a stream and
/// returns.
struct CUstream_st;

namespace fieldprint::backend::cuda {

using Stream = CUstream_st*;

/// Stops the process if the launch of `kernel` was refused: wrong shapes are our mistake.
void check_launch(const char* kernel);

/// Stops the process, naming the call, if `error` (a cudaError_t) is not success.
void check(int error, const char* call);

/// Stops the process, naming `what`, unless it holds. For launchers: nvcc cannot read the header of CHECK.
void require(bool holds, const char* what);

/// Of the current device, asked once.
int multiprocessors();

}  // namespace fieldprint::backend::cuda
