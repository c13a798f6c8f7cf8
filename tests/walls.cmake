# Who may include whom:  cmake -D ROOT=<source tree> -P tests/walls.cmake
#
# Left may include right, never back: {apps, python} -> train -> model -> nn -> ops -> attention -> core, and
# the backends (reference, cpu, cuda, no_cuda) -> {attention, ops, core}; model -> text -> io -> core. Two
# kinds of headers are checked:
#   "flashmha/x.h"  public, belongs to the room named below
#   "room/x.h"      private, for the room itself and, where a seam is listed, for the rooms named
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
    "apps -> cpu/(isa|kernel_table|machine_probe)\\.h")  # info, and the peak that shares refer to

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

function(check_include file room line)
  if(line MATCHES "\"flashmha/([a-z_0-9/]+)\\.h\"")
    set(header ${CMAKE_MATCH_1})
    room_of_public(${header} owner)
    if(NOT owner)
      set(problem "flashmha/${header}.h belongs to no room: list it in tests/walls.cmake")
    elseif(NOT owner IN_LIST ${room}_sees)
      set(problem "${room} must not include flashmha/${header}.h of ${owner}")
    endif()
  elseif(line MATCHES "\"([a-z_0-9]+)/([a-z_0-9/.]+)\"")
    set(owner ${CMAKE_MATCH_1})
    set(edge "${room} -> ${owner}/${CMAKE_MATCH_2}")
    set(allowed FALSE)
    if(file MATCHES "/include/flashmha/" OR room STREQUAL "python")
      set(seams "")  # users do not have them; python is built against an installed library
    elseif(edge MATCHES "^cuda -> cuda/(sm80|sm90)/" AND file MATCHES "/src/cuda/(tile|algo)/")
      set(problem "tiles and algorithms must not include kernels: ${line}")
    elseif(edge MATCHES "^cuda -> cuda/algo/" AND file MATCHES "/src/cuda/tile/")
      set(problem "tiles must not include algorithms: ${line}")
    endif()
    foreach(seam IN LISTS seams)
      if(edge MATCHES "^${seam}$")
        set(allowed TRUE)
      endif()
    endforeach()
    if(NOT owner STREQUAL room AND NOT allowed)
      set(problem "no seam lets ${edge}")
    endif()
  elseif(file MATCHES "/include/flashmha/" AND line MATCHES "[<\"][a-z_0-9]+[./]")
    set(problem "a public header includes more than the standard library: ${line}")
  endif()
  if(problem)
    list(APPEND violations "${file}: ${problem}")
    set(violations "${violations}" PARENT_SCOPE)
  endif()
endfunction()

function(check_file file room)
  file(STRINGS "${file}" lines REGEX "^[ \t]*#[ \t]*include")
  foreach(line IN LISTS lines)
    check_include("${file}" ${room} "${line}")
  endforeach()
  set(violations "${violations}" PARENT_SCOPE)
endfunction()

set(num_files 0)
file(GLOB public_headers "${ROOT}/include/flashmha/*.h")
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

file(GLOB_RECURSE sources "${ROOT}/src/*.h" "${ROOT}/src/*.cpp" "${ROOT}/apps/*.h"
                          "${ROOT}/apps/*.cpp" "${ROOT}/src/cuda/*.cu" "${ROOT}/src/cuda/*.cuh"
                          "${ROOT}/python/src/*.h" "${ROOT}/python/src/*.cpp")
foreach(file IN LISTS sources)
  file(RELATIVE_PATH relative "${ROOT}" "${file}")
  string(REGEX REPLACE "^(src/)?([^/]+)/.*" "\\2" room "${relative}")
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
