# Kernel sources are compiled once for each instruction set, with that set's compiler options. An
# inline function or template that such an object shares with the rest of the program (one of std::,
# say) could be taken from there by the linker and run on a machine without those instructions. So
# every symbol that these objects define for others must lie in their own namespace.
#
# cmake -D NM=<nm> -D TIER=<name> -D OBJECTS=<object;...> -P tier_symbols.cmake

if(NOT OBJECTS)
  message(FATAL_ERROR "no objects given for tier ${TIER}")
endif()
set(num_symbols 0)
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" --defined-only --extern-only --demangle "${object}"
                  OUTPUT_VARIABLE listing RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "cannot list the symbols of ${object}")
  endif()
  string(REPLACE ";" "," listing "${listing}")
  string(REGEX REPLACE "\n+" ";" lines "${listing}")
  foreach(line IN LISTS lines)
    if(line MATCHES "^[0-9a-f]* *[A-Za-z] (.+)$")
      set(symbol "${CMAKE_MATCH_1}")
      math(EXPR num_symbols "${num_symbols} + 1")
      # The name itself, after a return type if it has one, must begin with the tier's namespace.
      if(NOT symbol MATCHES "^(.* )?flashmha::cpu::${TIER}::[a-z_]+")
        message(SEND_ERROR "${object} defines ${symbol}")
      elseif(symbol MATCHES "^(std|fmt|__gnu_cxx|flashmha::core)::")
        message(SEND_ERROR "${object} defines ${symbol}")
      endif()
    endif()
  endforeach()
endforeach()
if(num_symbols EQUAL 0)
  message(FATAL_ERROR "tier ${TIER} defines no symbols at all: nothing was checked")
endif()
message(STATUS "${TIER}: ${num_symbols} symbols, all its own")
