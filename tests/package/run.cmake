# Installs FlashMHA into a scratch prefix and uses it as a stranger would, through CMake and through
# pkg-config:  cmake -D BUILD=<build> -D SCRATCH=<folder> -D COMPILER=<c++> -P run.cmake
cmake_minimum_required(VERSION 3.25)

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output
                  ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nfailed (${result}):\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

function(expect_works program)
  run(${program})
  if(NOT output MATCHES "FlashMHA [0-9.]+ works")
    message(FATAL_ERROR "${program} said: ${output}")
  endif()
endfunction()

file(REMOVE_RECURSE "${SCRATCH}")
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${SCRATCH}/prefix)
# Moved away from where it was installed: nothing in the package may point back.
file(RENAME "${SCRATCH}/prefix" "${SCRATCH}/moved")

run(${CMAKE_COMMAND} -G Ninja -S ${CMAKE_CURRENT_LIST_DIR} -B ${SCRATCH}/build
    -D CMAKE_PREFIX_PATH=${SCRATCH}/moved -D CMAKE_CXX_COMPILER=${COMPILER}
    -D CMAKE_BUILD_TYPE=Release)
run(${CMAKE_COMMAND} --build ${SCRATCH}/build)
expect_works(${SCRATCH}/build/consumer)

file(GLOB_RECURSE pkgconfig_file "${SCRATCH}/moved/*/flashmha.pc")
get_filename_component(pkgconfig_folder "${pkgconfig_file}" DIRECTORY)
set(ENV{PKG_CONFIG_PATH} "${pkgconfig_folder}")
run(pkg-config --static --cflags --libs flashmha)
separate_arguments(flags UNIX_COMMAND "${output}")
run(${COMPILER} -std=c++20 -O1 ${CMAKE_CURRENT_LIST_DIR}/main.cpp
    ${CMAKE_CURRENT_LIST_DIR}/other.cpp -o ${SCRATCH}/consumer ${flags}
    -Wl,-rpath,${pkgconfig_folder}/..)
expect_works(${SCRATCH}/consumer)

file(GLOB_RECURSE program "${SCRATCH}/moved/bin/flashmha")
run(${program} --version)
file(REMOVE_RECURSE "${SCRATCH}")
