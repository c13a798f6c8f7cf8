# flashmha/flashmha.h gives every public header:
#   cmake -D COMPILER=<c++> -D INCLUDE=<include folder> -P tests/package/everything.cmake
execute_process(COMMAND ${COMPILER} -std=c++20 -I${INCLUDE} -MM ${INCLUDE}/flashmha/flashmha.h
                OUTPUT_VARIABLE included COMMAND_ERROR_IS_FATAL ANY)
file(GLOB headers RELATIVE "${INCLUDE}" "${INCLUDE}/flashmha/*.h")
foreach(header IN LISTS headers)
  if(NOT included MATCHES "/${header}")
    message(SEND_ERROR "flashmha/flashmha.h does not include ${header}")
  endif()
endforeach()
list(LENGTH headers num_headers)
message(STATUS "flashmha/flashmha.h gives ${num_headers} headers")
