#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bindings.h"
#include "flashmha/tokenizer.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): "text"_a

namespace flashmha::python {
namespace {

using text::Tokenizer;
using WithoutGil = nb::call_guard<nb::gil_scoped_release>;

std::vector<std::int64_t> encode(const Tokenizer& tokenizer, std::string_view text,
                                 bool add_special_tokens, bool match_special_tokens) {
  const nb::gil_scoped_release released;
  return tokenizer.encode(text, {.add_special_tokens = add_special_tokens,
                                 .match_special_tokens = match_special_tokens});
}

}  // namespace

void bind_text(nb::module_& module) {
  nb::class_<Tokenizer>(module, "Tokenizer",
                        "Text to token ids and back. Immutable; may be used by many threads.")
      .def_static("bytes", &Tokenizer::bytes,
                  "Ids 0 to 255 are bytes, 256 is <|endoftext|>, the end of a sequence.")
      .def_static("from_file", &Tokenizer::from_file, "path"_a, WithoutGil(),
                  "The tokenizer of a tokenizer.json.")
      .def_static("for_model", &Tokenizer::for_model, "directory"_a, WithoutGil(),
                  "The tokenizer of a model's folder; bytes() if it has no tokenizer.json.")
      .def(
          "encode",
          [](const Tokenizer& tokenizer, nb::str text, bool add_special, bool match_special) {
            Py_ssize_t size = 0;
            const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
            if (data == nullptr) throw nb::python_error();
            return encode(tokenizer, {data, static_cast<std::size_t>(size)}, add_special,
                          match_special);
          },
          "text"_a, "add_special_tokens"_a = true, "match_special_tokens"_a = true,
          "Ids of a str, or of bytes, which may be invalid UTF-8. add_special_tokens: those that "
          "belong around a text. match_special_tokens: the text of a special token becomes that "
          "token; False for text from strangers.")
      .def(
          "encode",
          [](const Tokenizer& tokenizer, nb::bytes text, bool add_special, bool match_special) {
            return encode(tokenizer, {text.c_str(), text.size()}, add_special, match_special);
          },
          "text"_a, "add_special_tokens"_a = true, "match_special_tokens"_a = true)
      .def(
          "decode",
          [](const Tokenizer& tokenizer, const std::vector<std::int64_t>& ids, bool skip_special) {
            return tokenizer.decode(ids, skip_special);
          },
          "ids"_a, "skip_special_tokens"_a = true, WithoutGil(),
          "Text of ids; bytes that are no UTF-8 become U+FFFD.")
      .def("token_id", &Tokenizer::token_id, "token"_a,
           "Id of a token as tokenizer.json writes it; None if there is no such one.")
      .def_prop_ro("vocab_size", &Tokenizer::vocab_size, "One more than the highest id.")
      .def_prop_ro("bos_token_id", &Tokenizer::bos_token_id, "Starts a sequence, or None.")
      .def_prop_ro("eos_token_id", &Tokenizer::eos_token_id, "Ends a sequence, or None.");
}

}  // namespace flashmha::python
