// GELU by tanh on a CPU with AVX-512: x times the sigmoid of 2 u, u = sqrt(2 / pi) (x + 0.044715 x^3), which is
// x / 2 (1 + tanh u) (arXiv 1606.08415).

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "numbers.h"

namespace {

using at::Tensor;
using namespace showo;

constexpr int64_t GRAIN = 1 << 14;  // numbers that are worth a thread
constexpr float TWICE_ROOT = 1.5957691216f, CUBE = 0.044715f;

inline float sigmoid(float x) {
  const float e = exponential(-std::abs(x));
  return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

inline float gelu(float x) { return x * sigmoid(TWICE_ROOT * (x + CUBE * x * x * x)); }

inline float slope(float x) {
  const float s = sigmoid(TWICE_ROOT * (x + CUBE * x * x * x));
  return s + x * s * (1.0f - s) * TWICE_ROOT * (1.0f + 3.0f * CUBE * x * x);
}

template <class T>
void forward(const Tensor& input, const Tensor& output) {
  const T* x = static_cast<const T*>(input.data_ptr());
  T* y = static_cast<T*>(output.data_ptr());
  at::parallel_for(0, input.numel(), GRAIN, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] = narrow<T>(gelu(widen(x[i])));
  });
}

template <class T>
void backward(const Tensor& grad, const Tensor& input, const Tensor& output) {
  const T *g = static_cast<const T*>(grad.data_ptr()), *x = static_cast<const T*>(input.data_ptr());
  T* y = static_cast<T*>(output.data_ptr());
  at::parallel_for(0, input.numel(), GRAIN, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] = narrow<T>(widen(g[i]) * slope(widen(x[i])));
  });
}

Tensor forward_op(const Tensor& input) {
  const Tensor output = at::empty_like(input);
  (input.scalar_type() == at::kFloat ? forward<float> : forward<Bits>)(input, output);
  return output;
}

Tensor backward_op(const Tensor& grad, const Tensor& input) {
  const Tensor output = at::empty_like(input);
  (input.scalar_type() == at::kFloat ? backward<float> : backward<Bits>)(grad, input, output);
  return output;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(showo_kernels, library) {
  library.def("gelu(Tensor input) -> Tensor");
  library.def("gelu_backward(Tensor grad, Tensor input) -> Tensor");
}

TORCH_LIBRARY_IMPL(showo_kernels, CPU, library) {
  library.impl("gelu", forward_op);
  library.impl("gelu_backward", backward_op);
}
