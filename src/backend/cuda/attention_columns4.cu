#include "backend/cuda/attention_columns.cuh"

namespace fieldprint::backend::cuda {

void launch_columns4(const ColumnsArgs& args, std::int32_t blocks, Stream stream) {
  launch_columns_of<4>(args, blocks, stream);
}

}  // namespace fieldprint::backend::cuda
