# fmt, without which users of FlashMHA can do: no header of it is public, no library of it is
# linked.
#
# Used header-only, its text engine would be compiled again in every source file that formats
# anything: three of every four seconds of a build. So one source file holds it, for all others, as
# weak symbols that get along with a user's own fmt.
find_package(fmt REQUIRED)

add_library(flashmha_fmt INTERFACE)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT BUILD_SHARED_LIBS)
  get_target_property(fmt_include fmt::fmt-header-only INTERFACE_INCLUDE_DIRECTORIES)
  target_include_directories(flashmha_fmt SYSTEM INTERFACE ${fmt_include})
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/fmt.cpp"
       CONTENT "#include <fmt/format.h>\n#include <fmt/ranges.h>\n")
  add_library(flashmha_fmt_engine OBJECT "${PROJECT_BINARY_DIR}/fmt.cpp")
  target_compile_options(flashmha_fmt_engine PRIVATE -fno-inline -fkeep-inline-functions)
  target_link_libraries(flashmha_fmt_engine PRIVATE fmt::fmt-header-only)
  set_property(GLOBAL APPEND PROPERTY FLASHMHA_ROOM_TARGETS flashmha_fmt_engine)
elseif(FLASHMHA_BUILD_FUZZERS)
  target_link_libraries(flashmha_fmt INTERFACE fmt::fmt)  # nobody installs these
else()
  target_link_libraries(flashmha_fmt INTERFACE fmt::fmt-header-only)
endif()
