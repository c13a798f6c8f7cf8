# Who may include whom:  cmake -D ROOT=<source tree> -P tests/walls.cmake
#
# Left may include right, never back: {apps, python} -> train -> model -> nn -> ops -> attention ->
# core, and the backends (reference, cpu, cuda, no_cuda) -> {attention, ops, core}; model -> text ->
# io -> core. What is checked:
#   "flashmha/x.h"  public, belongs to the room named below
#   "room/x.h"      private, for the room itself and, where a seam is listed, for the rooms named
#   <library/x.h>   another's, for the files that are listed
cmake_minimum_required(VERSION 3.25)

set(public_of_core device dlpack dtype error graph random tensor version)
set(public_of_attention attention plan)
set(public_of_io safetensors)
set(public_of_ops ops)
set(public_of_nn kv_cache layers mha nn padding plain_attention rotary)
set(public_of_model checkpoint generation model sampling sanity text_generation
                    training)
set(public_of_text tokenizer)
set(public_of_train dataset trainer)
set(public_of_all flashmha)  # includes the others; for users

# Public headers of these rooms may be included...
set(core_sees core)
set(attention_sees attention core)
set(ops_sees ops attention core)
set(reference_sees attention ops core)
set(cpu_sees attention ops core)
set(cuda_sees attention ops core)
set(no_cuda_sees attention ops core)
set(nn_sees nn ops attention core)
set(io_sees io core)
set(text_sees text io core)
set(model_sees model text io nn ops attention core)
set(train_sees train model text io nn ops attention core)
set(apps_sees all train model text io nn ops attention core)
set(python_sees all train model text io nn ops attention core)
set(all_sees train model text io nn ops attention core)

# ...and private headers of other rooms only through these seams.
set(seams
    "[a-z_]+ -> core/[a-z_]+\\.h"  # the tools of every room
    "(reference|cpu|cuda|no_cuda) -> attention/(mask|philox|registry|sequence)\\.h"
    "(reference|cpu|cuda|no_cuda) -> ops/table\\.h"
    "[a-z_]+ -> io/(file|json|safetensors_write)\\.h"
    "train -> model/mix\\.h"
    "apps -> cpu/isa\\.h")  # info, and the peak that shares refer to

# Other libraries are known to few files (docs/dependencies.md).
set(libraries
    "(apps|src/(core|model|train))/.* -> fmt/(format|ranges)\\.h"
    "apps/command\\.h -> (CLI/CLI|nlohmann/json)\\.hpp"
    "src/io/json\\.h -> nlohmann/json\\.hpp"
    "src/core/dlpack\\.cpp -> dlpack/dlpack\\.h"
    "src/text/oniguruma\\.h -> oniguruma\\.h"
    "src/text/unicode\\.cpp -> utf8proc\\.h"
    "src/cpu/simd_[a-z0-9]+\\.h -> immintrin\\.h"
    "src/cpu/isa_x86\\.cpp -> cpuid\\.h"
    "src/cuda/.* -> cuda_(runtime_api|bf16|fp16)\\.h"
    "src/cuda/ops/cublaslt\\.h -> cublasLt\\.h"
    "src/cuda/ops/cublaslt\\.cpp -> dlfcn\\.h"
    "src/cuda/ops/rows_by_index\\.cu -> cub/.*"
    "python/src/.* -> (nanobind|dlpack)/.*"
    "(apps|src/(core|io|text|train))/.* -> (dlfcn|fcntl|sched|unistd|sys/[a-z]+)\\.h")  # POSIX

set(violations "")

function(room_of_public header result)
  foreach(room core io attention ops text nn model train all)
    if(header IN_LIST public_of_${room})
      set(${result} ${room} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(${result} "" PARENT_SCOPE)
endfunction()

# One public header of ours, in quotes.
function(check_public room header)
  room_of_public(${header} owner)
  if(NOT owner)
    set(problem "flashmha/${header}.h belongs to no room: list it in tests/walls.cmake"
        PARENT_SCOPE)
  elseif(NOT owner IN_LIST ${room}_sees)
    set(problem "${room} must not include flashmha/${header}.h of ${owner}" PARENT_SCOPE)
  endif()
endfunction()

# One private header of ours, in quotes.
function(check_private file room owner header)
  set(edge "${room} -> ${owner}/${header}")
  set(allowed FALSE)
  if(file MATCHES "^include/flashmha/" OR room STREQUAL "python")
    set(seams "")  # users do not have them; python is built against an installed library
  elseif(edge MATCHES "^cuda -> cuda/(sm80|sm90)/" AND file MATCHES "^src/cuda/(tile|algo)/")
    set(problem "tiles and algorithms must not include kernels: ${edge}" PARENT_SCOPE)
  elseif(edge MATCHES "^cuda -> cuda/algo/" AND file MATCHES "^src/cuda/tile/")
    set(problem "tiles must not include algorithms: ${edge}" PARENT_SCOPE)
  elseif("${file} ${edge}" MATCHES "^src/cuda/(sm80/.* cuda/sm90|sm90/.* cuda/sm80)/")
    set(problem "kernels for sm_80 and sm_90 do not know each other: ${edge}" PARENT_SCOPE)
  endif()
  foreach(seam IN LISTS seams)
    if(edge MATCHES "^${seam}$")
      set(allowed TRUE)
    endif()
  endforeach()
  if(NOT owner STREQUAL room AND NOT allowed)
    set(problem "no seam lets ${edge}" PARENT_SCOPE)
  endif()
endfunction()

# A header in angle brackets: the standard library's, or another library's.
function(check_library file header)
  string(REGEX REPLACE "/.*" "" folder "${header}")
  if(header MATCHES "^[a-z_0-9]+$")
    return()
  elseif(file MATCHES "^include/flashmha/")
    set(problem "a public header includes more than the standard library: <${header}>" PARENT_SCOPE)
    return()
  elseif(folder STREQUAL "flashmha" OR DEFINED ${folder}_sees)
    set(problem "our own headers are included in quotes, not as <${header}>" PARENT_SCOPE)
    return()
  endif()
  foreach(library IN LISTS libraries)
    if("${file} -> ${header}" MATCHES "^${library}$")
      return()
    endif()
  endforeach()
  set(problem "<${header}> is not for this file: see 'libraries' in tests/walls.cmake" PARENT_SCOPE)
endfunction()

function(check_include file room line)
  set(problem "")
  if(NOT line MATCHES "include[ \t]*([<\"])([^>\"]+)[>\"]")
    set(problem "an include must name its file: ${line}")
  else()
    set(bracket "${CMAKE_MATCH_1}")
    set(header "${CMAKE_MATCH_2}")
    if(header MATCHES "(^|/)\\.\\.?/")
      set(problem "relative include of ${header}; headers are named from include/ or src/")
    elseif(bracket STREQUAL "<")
      check_library(${file} ${header})
    elseif(header MATCHES "^flashmha/([a-z_0-9/]+)\\.h$")
      check_public(${room} ${CMAKE_MATCH_1})
    elseif(header MATCHES "^([a-z_0-9]+)/(.+)$")
      check_private(${file} ${room} ${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
    elseif(NOT file MATCHES "^(apps|python/src)/")  # these have folders of their own
      set(problem "'${header}' must be named with its room: room/file.h")
    endif()
  endif()
  if(problem)
    list(APPEND violations "${file}: ${problem}")
    set(violations "${violations}" PARENT_SCOPE)
  endif()
endfunction()

# file: relative to ROOT.
function(check_file file room)
  file(STRINGS "${ROOT}/${file}" lines REGEX "^[ \t]*#[ \t]*include")
  foreach(line IN LISTS lines)
    check_include("${file}" ${room} "${line}")
  endforeach()
  set(violations "${violations}" PARENT_SCOPE)
endfunction()

set(num_files 0)
file(GLOB public_headers RELATIVE "${ROOT}" "${ROOT}/include/flashmha/*.h")
foreach(file IN LISTS public_headers)
  get_filename_component(header "${file}" NAME_WE)
  room_of_public(${header} room)
  if(room)
    check_file("${file}" ${room})
  else()
    list(APPEND violations "${file} belongs to no room: list it in tests/walls.cmake")
  endif()
  math(EXPR num_files "${num_files} + 1")
endforeach()

file(GLOB_RECURSE sources RELATIVE "${ROOT}"
     "${ROOT}/src/*.h" "${ROOT}/src/*.cpp" "${ROOT}/src/*.cu" "${ROOT}/src/*.cuh"
     "${ROOT}/apps/*.h" "${ROOT}/apps/*.cpp" "${ROOT}/python/src/*.h" "${ROOT}/python/src/*.cpp")
foreach(file IN LISTS sources)
  string(REGEX REPLACE "^(src/)?([^/]+)/.*" "\\2" room "${file}")
  if(NOT DEFINED ${room}_sees)
    list(APPEND violations "${file}: '${room}' is no room: list it in tests/walls.cmake")
  else()
    check_file("${file}" ${room})
  endif()
  math(EXPR num_files "${num_files} + 1")
endforeach()

if(num_files EQUAL 0)
  message(FATAL_ERROR "walls: no source file under ROOT (${ROOT})")
endif()
if(violations)
  list(JOIN violations "\n  " text)
  message(FATAL_ERROR "walls: forbidden includes:\n  ${text}")
endif()
message(STATUS "walls: ${num_files} files keep them")
