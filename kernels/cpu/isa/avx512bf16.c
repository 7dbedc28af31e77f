#define KT_LEVEL avx512bf16
#include "level.inc"
