# A room is a folder of src/: one object library, built with the same options. All rooms together
# are the one installed library, FlashMHA::flashmha.

# flashmha_room(<name> SOURCES <file>... [LIBRARIES <header-only target>...])
function(flashmha_room name)
  cmake_parse_arguments(PARSE_ARGV 1 room "" "" "SOURCES;LIBRARIES")
  add_library(flashmha_${name} OBJECT ${room_SOURCES})
  target_include_directories(flashmha_${name} PRIVATE "${PROJECT_SOURCE_DIR}/include"
                                                      "${PROJECT_SOURCE_DIR}/src")
  target_link_libraries(flashmha_${name} PRIVATE flashmha_build_options flashmha_fmt
                                                 Threads::Threads ${room_LIBRARIES})
  set_property(GLOBAL APPEND PROPERTY FLASHMHA_ROOM_TARGETS flashmha_${name})
endfunction()

# Joins the rooms into the library and describes its installation.
function(flashmha_library)
  get_property(rooms GLOBAL PROPERTY FLASHMHA_ROOM_TARGETS)
  list(TRANSFORM rooms REPLACE "(.+)" "$<TARGET_OBJECTS:\\1>" OUTPUT_VARIABLE objects)
  add_library(flashmha ${objects})
  add_library(FlashMHA::flashmha ALIAS flashmha)
  set_target_properties(flashmha PROPERTIES LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION}
                                            SOVERSION ${PROJECT_VERSION_MAJOR})
  target_compile_features(flashmha PUBLIC cxx_std_20)
  target_include_directories(flashmha PUBLIC "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>"
                                             "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
  target_link_libraries(flashmha PUBLIC Threads::Threads
                                 PRIVATE $<BUILD_INTERFACE:flashmha_build_options>
                                         ${FLASHMHA_LINKED})
  include(package)
endfunction()

# flashmha_test(<name> SOURCES <file>... [LABELS <label>...] [LIBRARIES <target>...]
#               [TIMEOUT <seconds of one test>])
# One GoogleTest program; every TEST becomes a CTest test. Suites that carry the name of a row of
# the mission (TEST(A3, one_token_query)) are listed as mission.A3.one_token_query, so that the rows
# can be ticked off. Tests may include private headers ("room/file.h") and helpers ("tests/file.h").
function(flashmha_test name)
  cmake_parse_arguments(PARSE_ARGV 1 test "" "TIMEOUT" "SOURCES;LABELS;LIBRARIES")
  if(NOT test_TIMEOUT)
    set(test_TIMEOUT 300)
  endif()
  if(FLASHMHA_SANITIZE)
    math(EXPR test_TIMEOUT "${test_TIMEOUT} * 4")
  endif()
  if(NOT test_LABELS)
    get_filename_component(test_LABELS "${CMAKE_CURRENT_SOURCE_DIR}" NAME)
  endif()
  add_executable(${name}_test ${test_SOURCES})
  target_include_directories(${name}_test PRIVATE "${PROJECT_SOURCE_DIR}/src"
                                                  "${PROJECT_SOURCE_DIR}")
  target_compile_definitions(${name}_test
                             PRIVATE FLASHMHA_TESTS_DIR="${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(${name}_test PRIVATE FlashMHA::flashmha flashmha_build_options
                                             flashmha_fmt ${test_LIBRARIES}
                                             GTest::gtest_main)
  set(rows "")
  foreach(row RANGE 1 14)
    list(APPEND rows A${row}.* B${row}.* C${row}.*)
  endforeach()
  list(JOIN rows ":" rows)
  set(common DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60
      PROPERTIES TIMEOUT ${test_TIMEOUT} LABELS "${test_LABELS}")
  gtest_discover_tests(${name}_test TEST_PREFIX mission. TEST_FILTER "${rows}" ${common})
  gtest_discover_tests(${name}_test TEST_FILTER "-${rows}" ${common})
endfunction()
