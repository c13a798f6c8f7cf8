# Kernel sources are compiled once for each instruction set, with that set's compiler options. An
# inline function or template that such an object shares with the rest of the program (one of std::,
# say) could be taken from there by the linker and run on a machine without those instructions. So
# every symbol that these objects define for others must lie in their own namespace.
#
# cmake -D NM=<nm> -D TIER=<name> -D OBJECTS=<object;...> -P tier_symbols.cmake

if(NOT OBJECTS)
  message(FATAL_ERROR "no objects given for tier ${TIER}")
endif()
string(LENGTH "${TIER}" length)
set(own "^_Z(GV)?Z?NK?8flashmha3cpu${length}${TIER}[0-9E]")  # Itanium C++ ABI, section 5.1
set(num_symbols 0)
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" --defined-only --extern-only --format=posix "${object}"
                  OUTPUT_VARIABLE listing RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "cannot list the symbols of ${object}")
  endif()
  string(REGEX MATCHALL "(^|\n)[^ \n]+ [A-Za-z] " symbols "${listing}")
  foreach(symbol IN LISTS symbols)
    string(REGEX REPLACE "^\n?([^ ]+) .*" "\\1" symbol "${symbol}")
    math(EXPR num_symbols "${num_symbols} + 1")
    if(NOT symbol MATCHES "${own}")
      message(SEND_ERROR "${object} defines ${symbol}")
    endif()
  endforeach()
endforeach()
if(num_symbols EQUAL 0)
  message(FATAL_ERROR "tier ${TIER} defines no symbols at all: nothing was checked")
endif()
message(STATUS "${TIER}: ${num_symbols} symbols, all its own")
