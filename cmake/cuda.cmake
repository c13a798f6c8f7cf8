# The CUDA toolkit, for src/cuda. Its runtime is linked statically; cuBLASLt is loaded by name when
# it is first needed (src/cuda/ops/cublaslt.h says why).
if(CMAKE_CXX_COMPILER_LAUNCHER AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
# sm_80 code and PTX of it run on that and everything newer, which compiles PTX at a kernel's first
# use; code of its own saves that wait.
set(FLASHMHA_CUDA_ARCHITECTURES 80 CACHE STRING
    "What CUDA code is compiled for: 80, and what else, as in 80;90-real")
if(NOT "80" IN_LIST FLASHMHA_CUDA_ARCHITECTURES)
  message(FATAL_ERROR "FLASHMHA_CUDA_ARCHITECTURES must hold 80, which runs on every GPU that is "
                      "served; it is '${FLASHMHA_CUDA_ARCHITECTURES}'")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${FLASHMHA_CUDA_ARCHITECTURES})
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(FLASHMHA_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(FLASHMHA_NVCC)
    set(CMAKE_CUDA_COMPILER "${FLASHMHA_NVCC}")
  endif()
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "FlashMHA needs nvcc 12.8 or newer; found ${CMAKE_CUDA_COMPILER_VERSION} "
                      "(${CMAKE_CUDA_COMPILER}). Name another with -DCMAKE_CUDA_COMPILER=...")
endif()
find_package(CUDAToolkit REQUIRED)
if(NOT TARGET CUDA::cublasLt)
  message(FATAL_ERROR "FlashMHA needs cuBLASLt of the CUDA toolkit: cublasLt.h and libcublasLt.so")
endif()
list(APPEND FLASHMHA_LINKED CUDA::cudart_static)

# The name that programs load it by: libcublasLt.so.13 of libcublasLt.so.13.1.0.
get_target_property(cublaslt_file CUDA::cublasLt IMPORTED_LOCATION)
file(REAL_PATH "${cublaslt_file}" cublaslt_file)
get_filename_component(cublaslt_name "${cublaslt_file}" NAME)
string(REGEX REPLACE "(\\.so\\.[0-9]+).*" "\\1" FLASHMHA_CUBLASLT "${cublaslt_name}")
