# Tests of the tree itself: its walls, limits and layout, its headers, its package.

# flashmha_gate(<name> <label> <timeout> <command>...)
function(flashmha_gate name label timeout)
  add_test(NAME ${name} COMMAND ${ARGN})
  set_tests_properties(${name} PROPERTIES LABELS ${label} TIMEOUT ${timeout})
endfunction()

set(tests ${CMAKE_CURRENT_SOURCE_DIR})
set(scratch ${PROJECT_BINARY_DIR}/scratch)

flashmha_gate(gate.walls gate 60 ${CMAKE_COMMAND} -D ROOT=${PROJECT_SOURCE_DIR}
              -P ${tests}/walls.cmake)
flashmha_gate(gate.walls_find_violations gate 60 ${CMAKE_COMMAND} -D WALLS=${tests}/walls.cmake
              -D SCRATCH=${scratch}/walls -P ${tests}/walls_selftest.cmake)
flashmha_gate(gate.mission_rows gate 60 ${CMAKE_COMMAND} -D BUILD=${PROJECT_BINARY_DIR}
              -P ${tests}/mission_rows.cmake)
flashmha_gate(gate.limits gate 60 ${CMAKE_COMMAND} -D ROOT=${PROJECT_SOURCE_DIR}
              -P ${tests}/limits.cmake)
flashmha_gate(gate.format gate 300 ${PROJECT_SOURCE_DIR}/scripts/format.sh)
flashmha_gate(gate.tidy gate 900 ${PROJECT_SOURCE_DIR}/scripts/tidy.sh ${PROJECT_BINARY_DIR})
# Uses every processor by itself: started first, so that the others fill the end.
cmake_host_system_information(RESULT num_processors QUERY NUMBER_OF_LOGICAL_CORES)
set_tests_properties(gate.tidy PROPERTIES PROCESSORS ${num_processors} COST 1000)

# Each public header compiles alone, without a warning and without any other library's headers.
file(GLOB headers CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/include"
     "${PROJECT_SOURCE_DIR}/include/flashmha/*.h")
foreach(header IN LISTS headers)
  get_filename_component(name ${header} NAME_WE)
  file(CONFIGURE OUTPUT "${scratch}/headers/${name}.cpp"
       CONTENT "#include <${header}>\n#include <${header}>\n")
  flashmha_gate(package.header.${name} package 60
                ${CMAKE_CXX_COMPILER} -std=c++20 -fsyntax-only -Wall -Wextra -Wpedantic -Wshadow
                -Wconversion -Werror -I${PROJECT_SOURCE_DIR}/include ${scratch}/headers/${name}.cpp)
endforeach()

# flashmha/flashmha.h includes all of them.
flashmha_gate(package.header_of_everything package 60 ${CMAKE_COMMAND}
              -D COMPILER=${CMAKE_CXX_COMPILER} -D INCLUDE=${PROJECT_SOURCE_DIR}/include
              -P ${tests}/package/everything.cmake)

file(GLOB snippets CONFIGURE_DEPENDS "${tests}/compile_fail/*.cpp")
string(COMPARE EQUAL "${CMAKE_CXX_COMPILER_ID}" GNU gnu)
foreach(snippet IN LISTS snippets)
  get_filename_component(name ${snippet} NAME_WE)
  flashmha_gate(compile_fail.${name} package 60 ${CMAKE_COMMAND} -D COMPILER=${CMAKE_CXX_COMPILER}
                -D GNU=${gnu} -D INCLUDE=${PROJECT_SOURCE_DIR}/include
                -D SNIPPET=${snippet} -P ${tests}/compile_fail/check.cmake)
endforeach()

# The documents' C++ compiles.
foreach(document README docs/model)
  string(REGEX REPLACE ".*/" "" name ${document})
  flashmha_gate(readme.snippets.${name} readme 120 ${PROJECT_SOURCE_DIR}/scripts/check_snippets.sh
                ${CMAKE_CXX_COMPILER} ${PROJECT_SOURCE_DIR}/${document}.md)
endforeach()

if(FLASHMHA_BUILD_APPS)
  flashmha_gate(package.consumer package 300 ${CMAKE_COMMAND} -D BUILD=${PROJECT_BINARY_DIR}
                -D SCRATCH=${scratch}/package -D COMPILER=${CMAKE_CXX_COMPILER}
                -P ${tests}/package/run.cmake)
  flashmha_gate(readme.outputs readme 600 ${PROJECT_SOURCE_DIR}/scripts/check_readme.sh
                $<TARGET_FILE:flashmha_program> ${PROJECT_SOURCE_DIR}/README.md)
  flashmha_gate(mission.A14.document_shows_what_the_program_prints readme 600
                ${PROJECT_SOURCE_DIR}/scripts/check_readme.sh $<TARGET_FILE:flashmha_program>
                ${PROJECT_SOURCE_DIR}/docs/implementation.md)
endif()

# A minute of fuzzing for each target, one after the other; `make fuzz SECONDS=3600` takes longer.
include(fuzz/targets.cmake)
foreach(target IN LISTS FLASHMHA_FUZZ_TARGETS)
  flashmha_gate(fuzz.${target} fuzz 600 ${PROJECT_SOURCE_DIR}/scripts/fuzz.sh ${target} 60)
  set_tests_properties(fuzz.${target} PROPERTIES SKIP_RETURN_CODE 77 RESOURCE_LOCK fuzz COST 900)
endforeach()

# The Python package, built against this build's library.
if(FLASHMHA_BUILD_APPS AND NOT BUILD_SHARED_LIBS)
  flashmha_gate(python.package python 900 ${PROJECT_SOURCE_DIR}/scripts/python_test.sh
                ${PROJECT_BINARY_DIR})
  set_tests_properties(python.package PROPERTIES SKIP_RETURN_CODE 77 COST 800)
endif()

# The CUDA backend is compiled wherever there is a compiler for it; a build with it needs no other.
if(NOT FLASHMHA_CUDA)
  flashmha_gate(gate.cuda_builds gate 1800 ${PROJECT_SOURCE_DIR}/scripts/cuda_builds.sh)
  set_tests_properties(gate.cuda_builds PROPERTIES SKIP_RETURN_CODE 77 COST 950
                       PROCESSORS ${num_processors})
endif()
