# Regular expressions (Oniguruma), normal forms and properties of characters (utf8proc), for
# src/text. Oniguruma is loaded by name when it is first needed (src/text/oniguruma.h says why);
# utf8proc is linked: a static FlashMHA does not hold it, its users link it through the CMake
# package or pkg-config (cmake/FlashMHAConfig.cmake.in, cmake/flashmha.pc.in).
find_package(PkgConfig REQUIRED)
pkg_check_modules(oniguruma REQUIRED oniguruma)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)
set(FLASHMHA_LINKED PkgConfig::utf8proc ${CMAKE_DL_LIBS})

# The name that programs load it by: libonig.so.5 of libonig.so.5.3.0.
file(REAL_PATH "${oniguruma_LINK_LIBRARIES}" oniguruma_file)
get_filename_component(oniguruma_name "${oniguruma_file}" NAME)
string(REGEX REPLACE "(\\.so\\.[0-9]+).*" "\\1" FLASHMHA_ONIGURUMA "${oniguruma_name}")
