#include "backend/cuda/attention_columns.cuh"

namespace fieldprint::backend::cuda {

void launch_columns8(const ColumnsArgs& args, std::int32_t blocks, Stream stream) {
  launch_columns_of<8>(args, blocks, stream);
}

}  // namespace fieldprint::backend::cuda
