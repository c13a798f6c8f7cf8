# Regular expressions (Oniguruma), normal forms and properties of characters (utf8proc), for src/text.
# A static FlashMHA does not hold them: its users link them, through the CMake package or pkg-config (cmake/FlashMHAConfig.cmake.in,
# cmake/flashmha.pc.in).
find_package(PkgConfig REQUIRED)
pkg_check_modules(oniguruma REQUIRED IMPORTED_TARGET oniguruma)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)
set(FLASHMHA_LINKED PkgConfig::oniguruma PkgConfig::utf8proc)
