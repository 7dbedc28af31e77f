/* Products of activations and weights of any type. */
#ifndef KT_SYCL_PRODUCTS_HPP
#define KT_SYCL_PRODUCTS_HPP
#include "sycl.hpp"

/* Rows of the result belong to pairs of a token and one of its k experts: pair / k is the token. */
struct kt_pairs {
  const int32_t *ids; /* [tokens, k]; NULL: no experts */
  int64_t ids_stride, k, experts, matrix_stride;
  bool by_pair; /* x has a row a pair, and not a row a token */
};

/* out = x . w^T + bias (+ out, with `add`); with experts each row by its expert's matrix and bias. */
struct kt_product {
  const uint8_t *w;
  int64_t row_stride, rows, n;
  uint32_t type;
  const float *bias;
  bool add;
  kt_frows x, out;
  kt_pairs pairs;
};

/* Some of an expert's pairs: list[first] .. list[first + count - 1]. */
struct kt_tile {
  int32_t expert, first, count;
};
#define KT_TILE_TOKENS 64

/* A weight operand: [rows, columns] or a stack of such, of a type that kernels read, as files have it. */
kt_status_t kt_sycl_weight(kt_ctx *ctx, const char *name, const kt_tensor_t *w, uint32_t ndim, int64_t columns);
kt_product kt_sycl_product_of(const kt_tensor_t *w, const float *bias, bool add, kt_frows x, kt_frows out);
kt_status_t kt_sycl_multiply(kt_ctx *ctx, const kt_product &p);
/* Pairs by tiles, of which those without pairs (count 0) compute nothing. */
kt_status_t kt_sycl_multiply_tiles(kt_ctx *ctx, const kt_product &p, const int32_t *list, const kt_tile *tiles, int64_t num_tiles);
#endif
