#pragma once

#include <string>

namespace fieldprint::backend {

/// Why the kernels of an instruction set cannot run here ("needs …"), or empty if they can.
std::string avx2_obstacle();
std::string avx512_obstacle();

std::string sha_ni_obstacle();

/// Also asks Linux, once for the process, to let its threads use the tile registers, which it saves for those
/// processes alone that ask.
std::string amx_obstacle();

}  // namespace fieldprint::backend
