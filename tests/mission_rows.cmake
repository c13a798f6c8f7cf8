# Every test that is listed as one of the mission shows a row of it, A1 to A14, B1 to B12, C1 to C9:
#   cmake -D CTEST=<ctest> -D BUILD=<build folder> -P tests/mission_rows.cmake
execute_process(COMMAND ${CTEST} --test-dir ${BUILD} --show-only -R "^mission\\."
                OUTPUT_VARIABLE listing COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "mission\\.[^\n]+" tests "${listing}")
set(row "A([1-9]|1[0-4])|B([1-9]|1[0-2])|C[1-9]")
foreach(test IN LISTS tests)
  if(NOT test MATCHES "^mission\\.(${row})\\.")
    message(SEND_ERROR "${test} names no row of the mission")
  endif()
endforeach()
list(LENGTH tests num_tests)
if(num_tests EQUAL 0)
  message(FATAL_ERROR "no test shows a row of the mission")
endif()
message(STATUS "${num_tests} tests show rows of the mission")
