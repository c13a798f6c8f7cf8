// Arrays of Python libraries as TensorViews, without copying.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <cstddef>
#include <string_view>

#include "flashmha/tensor.h"

namespace flashmha::python {

// The arrays of one call. Views are valid as long as this object and the arrays that it was given
// are; the latter are held by the caller's argument list.
class CallArrays {
 public:
  explicit CallArrays(const char* function) : function_(function) {}

  // An array that is read; `what` names it in messages. None gives a view that is not given. Throws
  // nanobind::type_error for other objects and for element types that FlashMHA does not know.
  TensorView read(nanobind::handle object, const char* what);
  // An array that is written; refuses read-only ones where the library says so.
  TensorView write(nanobind::handle object, const char* what);

  // The queue that the library of the first GPU array works on; null for hosts.
  Stream stream() const { return stream_; }

 private:
  static constexpr std::size_t kMaxArrays = 24;

  TensorView view(nanobind::handle object, const char* what, bool writable);
  TensorView from_protocol(nanobind::handle given, const char* what, bool writable);
  [[noreturn]] void refuse(nanobind::handle object, const char* what, std::string_view why) const;

  const char* function_;
  Stream stream_;
  bool knows_stream_ = false;
  // Owned views of arrays whose library lacks the fast exchange.
  std::array<nanobind::ndarray<>, kMaxArrays> owned_;
  std::size_t num_owned_ = 0;
};

}  // namespace flashmha::python
