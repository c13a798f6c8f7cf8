# Compiles a snippet and looks at what the compiler says:
#   cmake -D COMPILER=<c++> -D INCLUDE=<folder> -D SNIPPET=<file> -P check.cmake
# Its first line says what is expected: "// error: <text of g++'s message>" or "// compiles". Other
# compilers (GNU not set) word their errors differently: they only have to fail.
cmake_minimum_required(VERSION 3.25)

file(STRINGS "${SNIPPET}" first_line LIMIT_COUNT 1)
set(ENV{LC_ALL} C)  # messages in English, with plain quotes
execute_process(COMMAND ${COMPILER} -std=c++20 -fsyntax-only -I${INCLUDE} ${SNIPPET}
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(first_line STREQUAL "// compiles")
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "must compile, but:\n${output}")
  endif()
elseif(first_line MATCHES "^// error: (.+)$")
  set(expected "${CMAKE_MATCH_1}")
  string(FIND "${output}" "${expected}" position)
  if(result EQUAL 0)
    message(FATAL_ERROR "compiles, but must fail with: ${expected}")
  elseif(GNU AND position EQUAL -1)
    message(FATAL_ERROR "expected: ${expected}\ngot:\n${output}")
  endif()
else()
  message(FATAL_ERROR "the first line must be '// error: <text>' or '// compiles'")
endif()
