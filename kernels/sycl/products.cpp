/* SHAPES       x [tokens, n] f32, w [rows, n] of any weight type, or [experts, rows, n]; out [tokens, rows] f32
 * DEFINITION   out = x . w^T + bias, in f32 on dequantised weights at every precision
 * REGULARITIES precision f32 and up to FEW_TOKENS tokens: a sub-group a row, whose sum does not depend on the batch. More: tiles of
 *              64 rows by 64 tokens in local memory, into which weights are dequantised once */
#include "products.hpp"
#include "blocks.hpp"

#define FEW_TOKENS 8
/* Tokens that a sub-group multiplies a piece of a row by. */
#define AT_ONCE 4

kt_status_t kt_sycl_weight(kt_ctx *ctx, const char *name, const kt_tensor_t *w, uint32_t ndim, int64_t columns) {
  KT_TRY(kt_gpu_tensor(ctx, name, w, ndim));
  if (w->dtype == KT_I32) return KT_INVALID("%s has type %u, which is no weight type", name, w->dtype);
  if (w->flags & KT_TENSOR_PACKED) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "%s is packed", name);
  KT_TRY(kt_gpu_size(name, w, (int)ndim - 1, columns));
  const kt_block_size block = kt_gpu_block(w->dtype);
  const int64_t stride = w->stride[ndim - 2];
  if (w->shape[ndim - 2] > 1 && (stride < 0 || (block.values > 1 && stride < columns / block.values * block.bytes)))
    return KT_INVALID("%s has rows %lld bytes apart", name, (long long)stride);
  return KT_OK;
}

kt_product kt_sycl_product_of(const kt_tensor_t *w, const float *bias, bool add, kt_frows x, kt_frows out) {
  const int last = (int)w->ndim - 1;
  return {(const uint8_t *)w->data, w->stride[last - 1], w->shape[last - 1], w->shape[last], w->dtype, bias, add, x, out, {}};
}

/* The sum of 8 products; the last of a row of plain values may be fewer. */
template <uint32_t TYPE> static float dot8(const float *w, const float *x, int64_t left) {
  if constexpr (kt_is_plain(TYPE)) {
    if (left < 8) {
      float sum = 0;
      for (int j = 0; j < left; j++) sum += w[j] * x[j];
      return sum;
    }
  }
  return ((w[0] * x[0] + w[1] * x[1]) + (w[2] * x[2] + w[3] * x[3])) + ((w[4] * x[4] + w[5] * x[5]) + (w[6] * x[6] + w[7] * x[7]));
}

static void put(const kt_product &p, int64_t out_row, int64_t row, int64_t bias_row, float value) {
  float *to = p.out.data + out_row * p.out.stride + row;
  if (p.bias != NULL) value += p.bias[bias_row];
  *to = p.add ? *to + value : value;
}

template <uint32_t TYPE> static kt_status_t by_rows(kt_ctx *ctx, const kt_product &p) {
  return kt_sycl_units(ctx, "linear", p.rows * kt_div_up(p.out.count, AT_ONCE), [=](sycl::sub_group lanes, int64_t unit) {
    const int64_t row = unit % p.rows, first = unit / p.rows * AT_ONCE, step = 8 * (int64_t)lanes.get_local_linear_range();
    const uint8_t *w = p.w + row * p.row_stride;
    const int count = (int)(p.out.count - first < AT_ONCE ? p.out.count - first : AT_ONCE);
    float sums[AT_ONCE] = {};
    for (int64_t col = 8 * (int64_t)lanes.get_local_linear_id(); col < p.n; col += step) {
      float values[8];
      kt_load<TYPE>(w, col, p.n, values);
      for (int t = 0; t < count; t++) sums[t] += dot8<TYPE>(values, p.x.data + (first + t) * p.x.stride + col, p.n - col);
    }
    for (int t = 0; t < count; t++) {
      const float sum = sycl::reduce_over_group(lanes, sums[t], sycl::plus<float>());
      if (lanes.leader()) put(p, first + t, row, row, sum);
    }
  });
}

/* Of an expert that is not in the stack: NaN. */
template <uint32_t TYPE> static kt_status_t by_pairs(kt_ctx *ctx, const kt_product &p) {
  return kt_sycl_units(ctx, "experts", p.rows * p.out.count, [=](sycl::sub_group lanes, int64_t unit) {
    const int64_t row = unit % p.rows, pair = unit / p.rows, token = pair / p.pairs.k, step = 8 * (int64_t)lanes.get_local_linear_range();
    const int64_t expert = p.pairs.ids[token * p.pairs.ids_stride + pair % p.pairs.k];
    const bool known = expert >= 0 && expert < p.pairs.experts;
    const uint8_t *w = p.w + (known ? expert : 0) * p.pairs.matrix_stride + row * p.row_stride;
    const float *x = p.x.data + (p.pairs.by_pair ? pair : token) * p.x.stride;
    float sum = 0;
    for (int64_t col = 8 * (int64_t)lanes.get_local_linear_id(); col < p.n; col += step) {
      float values[8];
      kt_load<TYPE>(w, col, p.n, values);
      sum += dot8<TYPE>(values, x + col, p.n - col);
    }
    sum = sycl::reduce_over_group(lanes, sum, sycl::plus<float>());
    if (lanes.leader()) put(p, pair, row, expert * p.rows + row, known ? sum : kt_float_of(0x7fc00000));
  });
}

/* ---- tiles ---- */
#define TILE_ROWS 64
#define TILE_COLUMNS 32
/* An item computes 4 rows by 4 tokens. */
#define SIDE 16
/* Of a row in local memory: the next one begins in another bank. */
#define PADDED (TILE_COLUMNS + 1)

static_assert(KT_TILE_TOKENS == TILE_ROWS && TILE_ROWS * TILE_COLUMNS == SIDE * SIDE * 8, "an item loads 8 values of both operands");

/* Rows of x and out that a tile's tokens are. */
struct places {
  const int32_t *list; /* pairs; NULL: tokens in their order */
  const kt_tile *tiles;
};

template <uint32_t TYPE> static kt_status_t by_tiles(kt_ctx *ctx, const kt_product &p, places at, int64_t num_tiles) {
  const int64_t row_tiles = kt_div_up(p.rows, TILE_ROWS);
  return kt_sycl_submit(ctx, "linear", [=](sycl::queue &queue) {
    queue.submit([&](sycl::handler &handler) {
      const sycl::local_accessor<float, 1> weights(TILE_ROWS * PADDED, handler), inputs(KT_TILE_TOKENS * PADDED, handler);
      const size_t groups = (size_t)(row_tiles * num_tiles);
      handler.parallel_for(sycl::nd_range<1>(groups * SIDE * SIDE, SIDE * SIDE), [=](sycl::nd_item<1> item) {
        const int64_t number = item.get_group(0) / row_tiles, row0 = item.get_group(0) % row_tiles * TILE_ROWS;
        const int64_t left = p.out.count - number * KT_TILE_TOKENS;
        const kt_tile tile = at.list != NULL ? at.tiles[number] : kt_tile{0, (int32_t)(number * KT_TILE_TOKENS), (int32_t)(left < KT_TILE_TOKENS ? left : KT_TILE_TOKENS)};
        if (tile.count == 0) return; /* all items of the group */
        const auto place = [&](int64_t token) { return at.list != NULL ? (int64_t)at.list[tile.first + token] : tile.first + token; };
        const int id = (int)item.get_local_id(0), x = id % SIDE, y = id / SIDE;
        /* what the item loads: 8 columns of a row and of a token */
        const int64_t line = id / (TILE_COLUMNS / 8), piece = id % (TILE_COLUMNS / 8) * 8;
        const bool has_row = row0 + line < p.rows, has_token = line < tile.count;
        const uint8_t *w = p.w + tile.expert * p.pairs.matrix_stride + (has_row ? row0 + line : 0) * p.row_stride;
        const int64_t own = has_token ? place(line) : 0;
        const float *from = p.x.data + (at.list != NULL && !p.pairs.by_pair ? own / p.pairs.k : own) * p.x.stride;
        float sums[4][4] = {};
        for (int64_t col = 0; col < p.n; col += TILE_COLUMNS) {
          float values[8] = {};
          if (has_row && col + piece < p.n) kt_load<TYPE>(w, col + piece, p.n, values);
          for (int j = 0; j < 8; j++) {
            weights[line * PADDED + piece + j] = values[j];
            inputs[line * PADDED + piece + j] = has_token && col + piece + j < p.n ? from[col + piece + j] : 0.0f;
          }
          sycl::group_barrier(item.get_group());
          for (int k = 0; k < TILE_COLUMNS; k++) {
            float a[4], b[4];
            for (int i = 0; i < 4; i++) a[i] = weights[(x + SIDE * i) * PADDED + k], b[i] = inputs[(y + SIDE * i) * PADDED + k];
            for (int i = 0; i < 4; i++)
              for (int j = 0; j < 4; j++) sums[i][j] += a[i] * b[j];
          }
          sycl::group_barrier(item.get_group());
        }
        for (int j = 0; j < 4; j++) {
          const int64_t token = y + SIDE * j;
          if (token >= tile.count) break;
          for (int i = 0; i < 4; i++) {
            const int64_t row = row0 + x + SIDE * i;
            if (row < p.rows) put(p, place(token), row, tile.expert * p.rows + row, sums[i][j]);
          }
        }
      });
    });
  });
}

#define EACH(CALL)                                                                                     \
  switch (p.type) {                                                                                    \
    KT_EACH_FILE_TYPE(CALL)                                                                            \
    default: return kt_gpu_fail(KT_ERR_UNSUPPORTED, "weights have type %u, which is no weight type", p.type); \
  }

kt_status_t kt_sycl_multiply(kt_ctx *ctx, const kt_product &p) {
#define CASE(TYPE) case TYPE: return by_pairs<TYPE>(ctx, p);
  if (p.pairs.ids != NULL) EACH(CASE)
#undef CASE
#define CASE(TYPE) case TYPE: return by_tiles<TYPE>(ctx, p, {}, kt_div_up(p.out.count, KT_TILE_TOKENS));
  if (ctx->precision == KT_PRECISION_FAST && p.out.count > FEW_TOKENS) EACH(CASE)
#undef CASE
#define CASE(TYPE) case TYPE: return by_rows<TYPE>(ctx, p);
  EACH(CASE)
#undef CASE
}

kt_status_t kt_sycl_multiply_tiles(kt_ctx *ctx, const kt_product &p, const int32_t *list, const kt_tile *tiles, int64_t num_tiles) {
#define CASE(TYPE) case TYPE: return by_tiles<TYPE>(ctx, p, {list, tiles}, num_tiles);
  EACH(CASE)
#undef CASE
}
