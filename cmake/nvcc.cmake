# Whether there is an nvcc that builds src/cuda: FLASHMHA_HAS_NVCC. Asked by builds that take CUDA
# where they find it, such as pip's; the others say what they want.
set(FLASHMHA_HAS_NVCC OFF)
find_program(FLASHMHA_NVCC nvcc PATHS /usr/local/cuda/bin)
if(FLASHMHA_NVCC)
  execute_process(COMMAND "${FLASHMHA_NVCC}" --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
  if(nvcc_version MATCHES "release ([0-9.]+)" AND CMAKE_MATCH_1 VERSION_GREATER_EQUAL 12.8)
    set(FLASHMHA_HAS_NVCC ON)
  endif()
endif()
message(STATUS "FlashMHA: nvcc 12.8 or newer for the CUDA backend: ${FLASHMHA_HAS_NVCC}")
