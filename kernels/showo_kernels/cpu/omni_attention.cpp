// Omni-attention on a CPU with AVX-512: forward and backward of a packed row, in bf16 or fp32.
//
// A task is one head of one document. Its rows and keys go through tiles; a tile without a visible
// pair is not computed. Tiles hold scores transposed, (keys, ROWS), so that what belongs to a row
// (maximum, sum, log-sum-exp) is a vector along ROWS and never summed across a register. Products run in
// oneDNN's brgemm (AMX for bf16) with fp32 sums; weights and their gradients are rounded to the inputs'
// type before they are multiplied, as FlashAttention does (arXiv 2205.14135).

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <tuple>
#include <type_traits>

#include "numbers.h"

namespace {

using at::BFloat16;
using at::Tensor;
using namespace showo;

constexpr int64_t ROWS = 64;   // of a tile; the last tile's missing rows have zeros for queries and gradients
constexpr int64_t KEYS = 128;  // a tile of fp32 scores then fits a core's first cache
constexpr int64_t GRAIN = 32;  // keys are filled up to a multiple, so that few shapes of brgemm exist
constexpr float HIDDEN = -std::numeric_limits<float>::infinity();

template <class T>
constexpr int64_t PAIR = sizeof(T) == 2 ? 2 : 1;  // brgemm wants this many k of one n side by side

inline float weight(float score, float scale, float top) {
  const float w = exponential(score * scale - top);
  return score == HIDDEN ? 0 : w;
}

int64_t round_up(int64_t n) { return (n + GRAIN - 1) / GRAIN * GRAIN; }

// c (m, n) = or += a (m, k) b (k, n); b packed, c dense.
void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_stride, const float* b,
              float* c, bool add) {
  at::native::cpublas::brgemm(m, n, k, a_stride, n, n, add, a, b, c, false);
}

void multiply(int64_t m, int64_t n, int64_t k, const Bits* a, int64_t a_stride, const Bits* b,
              float* c, bool add) {
  at::native::cpublas::brgemm(m, n, k, a_stride, n, n, add, reinterpret_cast<const BFloat16*>(a),
                              reinterpret_cast<const BFloat16*>(b), c, true);
}

// One head's tokens inside a (heads, tokens, D) tensor with a dense last dimension.
template <class T>
struct Heads {
  T* data;
  int64_t head, token;

  explicit Heads(const Tensor& x)
      : data(static_cast<T*>(x.data_ptr())), head(x.stride(0)), token(x.stride(1)) {}
  T* at(int64_t h, int64_t t) const { return data + h * head + t * token; }
};

// (n, D) with a stride -> dense (padded, D).
template <class T>
void copy(T* out, const T* in, int64_t stride, int64_t n, int64_t padded, int64_t D) {
  for (int64_t i = 0; i < n; ++i) std::copy_n(in + i * stride, D, out + i * D);
  std::fill(out + n * D, out + padded * D, T(0));
}

void transpose_block(const Bits* in, int64_t stride, Bits* out, int64_t out_stride, int64_t n, int64_t D) {
  at::vec::transpose_mxn(reinterpret_cast<const BFloat16*>(in), stride, reinterpret_cast<BFloat16*>(out), out_stride,
                         static_cast<int>(n), static_cast<int>(D));
}
void transpose_block(const float* in, int64_t stride, float* out, int64_t out_stride, int64_t n, int64_t D) {
  at::vec::transpose_mxn(in, stride, out, out_stride, static_cast<int>(n), static_cast<int>(D));
}

// (n, D) -> (D, n), both with a stride.
template <class T>
void transpose(T* out, int64_t out_stride, const T* in, int64_t stride, int64_t n, int64_t D) {
  for (int64_t i = 0; i < n; i += GRAIN)
    for (int64_t d = 0; d < D; d += GRAIN)
      transpose_block(in + i * stride + d, stride, out + d * out_stride + i, out_stride, std::min(GRAIN, n - i),
                      std::min(GRAIN, D - d));
}

// (n, D) with a stride -> dense (D, padded).
template <class T>
void copy_transposed(T* out, const T* in, int64_t stride, int64_t n, int64_t padded, int64_t D) {
  if (n < padded) std::fill_n(out, D * padded, T(0));
  transpose(out, padded, in, stride, n, D);
}

// n <= ROWS rows as brgemm's b of (ROWS, D).
template <class T>
void pack_rows(T* out, const T* in, int64_t stride, int64_t n, int64_t D) {
  constexpr int64_t P = PAIR<T>;
  for (int64_t i = 0; i < ROWS; ++i)
    for (int64_t d = 0; d < D; ++d)
      out[(i / P * D + d) * P + i % P] = i < n ? in[i * stride + d] : T(0);
}

// n <= ROWS rows as brgemm's b of (D, ROWS): pairs of bf16 move as one number.
template <class T>
void pack_columns(T* out, const T* in, int64_t stride, int64_t n, int64_t D) {
  copy_transposed(reinterpret_cast<float*>(out), reinterpret_cast<const float*>(in), stride / PAIR<T>, n, ROWS,
                  D / PAIR<T>);
}

// Stores two numbers of one column of a tile's neighbouring rows as brgemm's b, in T.
inline void store_pair(float* out, int64_t c, float first, float second) {
  out[c] = first;
  out[ROWS + c] = second;
}
inline void store_pair(Bits* out, int64_t c, float first, float second) {
  const uint32_t pair = narrow<Bits>(first) | static_cast<uint32_t>(narrow<Bits>(second)) << 16;
  reinterpret_cast<uint32_t*>(out)[c] = pair;
}

// Rows [r0, r1) against keys [k0, k1), places in the packed row; `keys` counts the zeros behind k1.
struct Tile {
  int64_t r0, r1, k0, k1, keys;
};

// The arrays of a Visibility, and for every place the number of global tokens before it.
struct Sight {
  const int32_t* reach;
  const bool* is_global;
  const int32_t* globals;

  bool nothing(const Tile& t) const {
    return t.k0 > reach[t.r1 - 1] && globals[t.k0] == globals[t.k1];
  }
  bool everything(const Tile& t) const {
    return t.k1 - 1 <= reach[t.r0] || globals[t.k1] - globals[t.k0] == t.k1 - t.k0;
  }
  // Reach does not decrease: the rows that miss a key are the first ones.
  void hide(float* scores, const Tile& t) const {
    int64_t missing = 0;
    for (int64_t k = t.k0; k < t.k1; ++k) {
      while (missing < t.r1 - t.r0 && reach[t.r0 + missing] < k) ++missing;
      if (!is_global[k]) std::fill_n(scores + (k - t.k0) * ROWS, missing, HIDDEN);
    }
  }
};

struct Documents {
  const int32_t* starts;
  int64_t count;
  Sight sight;
  int64_t longest = 0;

  Documents(const Tensor& starts_, const Tensor& reach, const Tensor& is_global, const Tensor& globals)
      : starts(starts_.data_ptr<int32_t>()),
        count(starts_.numel() - 1),
        sight{reach.data_ptr<int32_t>(), is_global.data_ptr<bool>(), globals.data_ptr<int32_t>()} {
    for (int64_t i = 0; i < count; ++i) longest = std::max<int64_t>(longest, starts[i + 1] - starts[i]);
  }
};

template <class T>
using Buffer = std::unique_ptr<T[]>;

template <class T>
Buffer<T> buffer(int64_t size) {
  return std::make_unique_for_overwrite<T[]>(size);
}

// Every task once, on whichever thread is free; a thread keeps one scratch for all of its tasks.
template <class Scratch, class Work>
void for_each_task(int64_t tasks, int64_t longest, int64_t D, Work work) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    Scratch scratch(round_up(longest), D);
    for (int64_t task; (task = next++) < tasks;) work(scratch, task);
    at::native::cpublas::brgemm_release();
  });
}

// Calls body(tile) for the tiles of rows [r0, r1) that hold a visible pair, from left to right.
template <class Body>
void for_each_tile(const Sight& sight, int64_t t0, int64_t t1, int64_t r0, int64_t r1, Body body) {
  for (int64_t k0 = t0; k0 < t1; k0 += KEYS) {
    const int64_t k1 = std::min(k0 + KEYS, t1);
    const Tile tile{r0, r1, k0, k1, round_up(k1 - k0)};
    if (!sight.nothing(tile)) body(tile);
  }
}

// Scores of a tile, HIDDEN where nothing is seen.
template <class T>
void score(float* scores, const T* keys, const T* rows, int64_t D, const Sight& sight, const Tile& t) {
  multiply(t.keys, ROWS, D, keys, D, rows, scores, false);
  if (!sight.everything(t)) sight.hide(scores, t);
  std::fill(scores + (t.k1 - t.k0) * ROWS, scores + t.keys * ROWS, HIDDEN);
}

using PerRow = std::array<float, ROWS>;

// Running maximum and sum of the softmax of a tile's rows.
struct Softmax {
  PerRow top, sum, shrink;

  // -1e30: the difference of two maxima stays a number while a row has seen nothing.
  Softmax() { top.fill(-1e30f), sum.fill(0); }

  // Weights of a tile's scores relative to the new maximum, as brgemm's b; `shrink` brings older ones to it.
  template <class T>
  void weigh(T* weights, const float* tile, int64_t keys, float scale) {
    const PerRow before = top;
    for (int64_t j = 0; j < keys; ++j)
#pragma omp simd
      for (int64_t c = 0; c < ROWS; ++c) top[c] = std::max(top[c], tile[j * ROWS + c] * scale);
#pragma omp simd
    for (int64_t c = 0; c < ROWS; ++c) {
      shrink[c] = exponential(before[c] - top[c]);
      sum[c] *= shrink[c];
    }
    for (int64_t j = 0; j < keys; j += 2, tile += 2 * ROWS, weights += 2 * ROWS)
#pragma omp simd
      for (int64_t c = 0; c < ROWS; ++c) {
        const float first = weight(tile[c], scale, top[c]);
        const float second = weight(tile[ROWS + c], scale, top[c]);
        sum[c] += first + second;
        store_pair(weights, c, first, second);
      }
  }
};

template <class T>
struct ForwardScratch {
  Buffer<T> keys, values, rows, weights;
  Buffer<float> tile, out;

  ForwardScratch(int64_t longest, int64_t D)
      : keys(buffer<T>(longest * D)),
        values(buffer<T>(longest * D)),
        rows(buffer<T>(ROWS * D)),
        weights(buffer<T>(KEYS * ROWS)),
        tile(buffer<float>(KEYS * ROWS)),
        out(buffer<float>(ROWS * D)) {}
};

template <class T>
void forward(const Tensor& query, const Tensor& key, const Tensor& value, const Documents& documents,
             float scale, const Tensor& out, const Tensor& log_sum) {
  const Heads<T> q(query), k(key), v(value), o(out);
  const int64_t H = query.size(0), D = query.size(2), group = H / key.size(0);
  const Sight& sight = documents.sight;
  for_each_task<ForwardScratch<T>>(H * documents.count, documents.longest, D, [&](auto& s, int64_t task) {
    const int64_t h = task / documents.count, document = task % documents.count;
    const int64_t t0 = documents.starts[document], t1 = documents.starts[document + 1];
    const int64_t padded = round_up(t1 - t0);
    copy(s.keys.get(), k.at(h / group, t0), k.token, t1 - t0, padded, D);
    copy_transposed(s.values.get(), v.at(h / group, t0), v.token, t1 - t0, padded, D);
    for (int64_t r0 = t0; r0 < t1; r0 += ROWS) {
      const int64_t r1 = std::min(r0 + ROWS, t1);
      pack_columns(s.rows.get(), q.at(h, r0), q.token, r1 - r0, D);
      Softmax softmax;
      float* sums = s.out.get();  // (D, ROWS)
      std::fill_n(sums, D * ROWS, 0.0f);
      for_each_tile(sight, t0, t1, r0, r1, [&](const Tile& t) {
        score(s.tile.get(), s.keys.get() + (t.k0 - t0) * D, s.rows.get(), D, sight, t);
        softmax.weigh(s.weights.get(), s.tile.get(), t.keys, scale);
        for (int64_t d = 0; d < D; ++d)
#pragma omp simd
          for (int64_t c = 0; c < ROWS; ++c) sums[d * ROWS + c] *= softmax.shrink[c];
        multiply(D, ROWS, t.keys, s.values.get() + t.k0 - t0, padded, s.weights.get(), sums, true);
      });
      float* logs = log_sum.data_ptr<float>() + h * log_sum.stride(0) + r0;
      for (int64_t c = 0; c < r1 - r0; ++c) logs[c] = softmax.top[c] + std::log(softmax.sum[c]);
      for (int64_t d = 0; d < D; ++d)
#pragma omp simd
        for (int64_t c = 0; c < ROWS; ++c) s.rows[d * ROWS + c] = narrow<T>(sums[d * ROWS + c] / softmax.sum[c]);
      transpose(o.at(h, r0), o.token, s.rows.get(), ROWS, D, r1 - r0);
    }
  });
}

template <class T>
struct BackwardScratch {
  Buffer<T> keys, key_columns, values, rows, row_columns, grads, grad_columns, weights, changes, packed;
  Buffer<float> tile, grad_tile, query_grad, key_grad, value_grad;

  BackwardScratch(int64_t longest, int64_t D)
      : keys(buffer<T>(longest * D)),
        key_columns(buffer<T>(longest * D)),
        values(buffer<T>(longest * D)),
        rows(buffer<T>(ROWS * D)),
        row_columns(buffer<T>(ROWS * D)),
        grads(buffer<T>(ROWS * D)),
        grad_columns(buffer<T>(ROWS * D)),
        weights(buffer<T>(KEYS * ROWS)),
        changes(buffer<T>(KEYS * ROWS)),
        packed(buffer<T>(KEYS * ROWS)),
        tile(buffer<float>(KEYS * ROWS)),
        grad_tile(buffer<float>(KEYS * ROWS)),
        query_grad(buffer<float>(ROWS * D)),
        key_grad(buffer<float>(longest * D)),
        value_grad(buffer<float>(longest * D)) {}
};

// Weights of a tile's scores, and the gradients of the scores, these also as brgemm's b.
template <class T>
void differentiate(T* weights, T* changes, T* packed, const float* tile, const float* grad_tile, int64_t keys,
                   float scale, const PerRow& log_sum, const PerRow& delta) {
  for (int64_t j = 0; j < keys; j += 2) {
    const int64_t at = j * ROWS;
#pragma omp simd
    for (int64_t c = 0; c < ROWS; ++c) {
      const float first = weight(tile[at + c], scale, log_sum[c]);
      const float second = weight(tile[at + ROWS + c], scale, log_sum[c]);
      const float one = first * (grad_tile[at + c] - delta[c]) * scale;
      const float other = second * (grad_tile[at + ROWS + c] - delta[c]) * scale;
      weights[at + c] = narrow<T>(first);
      weights[at + ROWS + c] = narrow<T>(second);
      changes[at + c] = narrow<T>(one);
      changes[at + ROWS + c] = narrow<T>(other);
      store_pair(packed + at, c, one, other);
    }
  }
}

template <class T>
void backward(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& out,
              const Tensor& log_sum, const Tensor& grad, const Documents& documents, float scale,
              const Tensor& query_grad, const Tensor& key_grad, const Tensor& value_grad) {
  const Heads<T> q(query), k(key), v(value), o(out), g(grad), dq(query_grad), dk(key_grad), dv(value_grad);
  const int64_t H = key.size(0), D = query.size(2), group = query.size(0) / H;
  const Sight& sight = documents.sight;
  for_each_task<BackwardScratch<T>>(H * documents.count, documents.longest, D, [&](auto& s, int64_t task) {
    const int64_t kh = task / documents.count, document = task % documents.count;
    const int64_t t0 = documents.starts[document], t1 = documents.starts[document + 1];
    const int64_t padded = round_up(t1 - t0);
    copy(s.keys.get(), k.at(kh, t0), k.token, t1 - t0, padded, D);
    copy(s.values.get(), v.at(kh, t0), v.token, t1 - t0, padded, D);
    copy_transposed(s.key_columns.get(), k.at(kh, t0), k.token, t1 - t0, padded, D);
    std::fill_n(s.key_grad.get(), padded * D, 0.0f);
    std::fill_n(s.value_grad.get(), padded * D, 0.0f);
    for (int64_t h = kh * group; h < (kh + 1) * group; ++h) {
      for (int64_t r0 = t0; r0 < t1; r0 += ROWS) {
        const int64_t r1 = std::min(r0 + ROWS, t1), n = r1 - r0;
        pack_rows(s.rows.get(), q.at(h, r0), q.token, n, D);
        pack_columns(s.row_columns.get(), q.at(h, r0), q.token, n, D);
        pack_rows(s.grads.get(), g.at(h, r0), g.token, n, D);
        pack_columns(s.grad_columns.get(), g.at(h, r0), g.token, n, D);
        PerRow delta{}, logs{};
        const float* log = log_sum.data_ptr<float>() + h * log_sum.stride(0) + r0;
        for (int64_t c = 0; c < n; ++c) {
          const T *x = o.at(h, r0 + c), *y = g.at(h, r0 + c);
          float sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t d = 0; d < D; ++d) sum += widen(x[d]) * widen(y[d]);
          delta[c] = sum;
          logs[c] = log[c];
        }
        float* sums = s.query_grad.get();  // (D, ROWS)
        std::fill_n(sums, D * ROWS, 0.0f);
        for_each_tile(sight, t0, t1, r0, r1, [&](const Tile& t) {
          const int64_t first = t.k0 - t0;
          score(s.tile.get(), s.keys.get() + first * D, s.row_columns.get(), D, sight, t);
          multiply(t.keys, ROWS, D, s.values.get() + first * D, D, s.grad_columns.get(), s.grad_tile.get(), false);
          differentiate(s.weights.get(), s.changes.get(), s.packed.get(), s.tile.get(), s.grad_tile.get(), t.keys,
                        scale, logs, delta);
          multiply(D, ROWS, t.keys, s.key_columns.get() + first, padded, s.packed.get(), sums, true);
          multiply(t.keys, D, ROWS, s.weights.get(), ROWS, s.grads.get(), s.value_grad.get() + first * D, true);
          multiply(t.keys, D, ROWS, s.changes.get(), ROWS, s.rows.get(), s.key_grad.get() + first * D, true);
        });
        for (int64_t i = 0; i < D * ROWS; ++i) s.rows[i] = narrow<T>(sums[i]);
        transpose(dq.at(h, r0), dq.token, s.rows.get(), ROWS, D, n);
      }
    }
    for (int64_t i = 0; i < t1 - t0; ++i) {
      for (int64_t d = 0; d < D; ++d) dk.at(kh, t0 + i)[d] = narrow<T>(s.key_grad[i * D + d]);
      for (int64_t d = 0; d < D; ++d) dv.at(kh, t0 + i)[d] = narrow<T>(s.value_grad[i * D + d]);
    }
  });
}

std::tuple<Tensor, Tensor> forward_op(const Tensor& query, const Tensor& key, const Tensor& value,
                                      const Tensor& starts, const Tensor& reach, const Tensor& is_global,
                                      const Tensor& globals, double scale) {
  const Documents documents(starts, reach, is_global, globals);
  const int64_t H = query.size(0), T = query.size(1), D = query.size(2);
  // Tokens outermost: the heads of a token then follow one another, as the output projection reads them.
  const Tensor out = at::empty({T, H, D}, query.options()).transpose(0, 1);
  const Tensor log_sum = at::empty({H, T}, query.options().dtype(at::kFloat));
  const auto run = query.scalar_type() == at::kFloat ? forward<float> : forward<Bits>;
  run(query, key, value, documents, scale, out, log_sum);
  return {out, log_sum};
}

std::tuple<Tensor, Tensor, Tensor> backward_op(const Tensor& query, const Tensor& key, const Tensor& value,
                                               const Tensor& out, const Tensor& log_sum, const Tensor& grad,
                                               const Tensor& starts, const Tensor& reach,
                                               const Tensor& is_global, const Tensor& globals, double scale) {
  const Documents documents(starts, reach, is_global, globals);
  const Tensor dq = at::empty_like(query), dk = at::empty_like(key), dv = at::empty_like(value);
  const auto run = query.scalar_type() == at::kFloat ? backward<float> : backward<Bits>;
  run(query, key, value, out, log_sum, grad, documents, scale, dq, dk, dv);
  return {dq, dk, dv};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(showo_kernels, library) {
  library.def(
      "omni_attention(Tensor query, Tensor key, Tensor value, Tensor starts, Tensor reach, "
      "Tensor is_global, Tensor globals, float scale) -> (Tensor, Tensor)");
  library.def(
      "omni_attention_backward(Tensor query, Tensor key, Tensor value, Tensor out, Tensor log_sum, "
      "Tensor grad, Tensor starts, Tensor reach, Tensor is_global, Tensor globals, float scale) "
      "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(showo_kernels, CPU, library) {
  library.impl("omni_attention", forward_op);
  library.impl("omni_attention_backward", backward_op);
}
