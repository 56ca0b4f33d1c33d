# Sets FIELDPRINT_HAS_CUDA, and enables the language, where nvcc is on the PATH or in CUDACXX.
set(FIELDPRINT_HAS_CUDA OFF)
if(FIELDPRINT_CUDA AND NOT FIELDPRINT_SANITIZE)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # Hopper's own instructions need the "a" target, which this CMake cannot name.
    set(CMAKE_CUDA_ARCHITECTURES OFF)
    enable_language(CUDA)
    # Nor does it know the dialects of an nvcc that is newer than itself.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    find_package(CUDAToolkit REQUIRED)
    set(FIELDPRINT_HAS_CUDA ON)
  endif()
endif()

# The numeric contract, as for the host: no contraction, correctly rounded division and root, no flush to zero.
set(FIELDPRINT_CUDA_FLAGS -gencode=arch=compute_90a,code=sm_90a -fmad=false -prec-div=true -prec-sqrt=true -ftz=false
                          --Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off)
option(FIELDPRINT_EVERY_LANE_ARRIVES "hand shared memory over as racecheck understands it (tools/racecheck)" OFF)
if(FIELDPRINT_EVERY_LANE_ARRIVES)
  list(APPEND FIELDPRINT_CUDA_FLAGS -DFIELDPRINT_EVERY_LANE_ARRIVES)
endif()
