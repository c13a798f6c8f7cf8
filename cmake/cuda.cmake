# The CUDA toolkit, for src/cuda. Linked statically: who uses FlashMHA needs the driver alone, and
# only when a GPU is used.
if(CMAKE_CXX_COMPILER_LAUNCHER AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
set(CMAKE_CUDA_ARCHITECTURES 80)
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
list(APPEND FLASHMHA_LINKED CUDA::cudart_static)
