# The fuzz targets: tests/fuzz/NAME_fuzz.cpp, with seeds in tests/fuzz/corpus/NAME.
set(FLASHMHA_FUZZ_TARGETS safetensors config tokenizer)
