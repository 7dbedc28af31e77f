#define KT_LEVEL avx512
#include "level.inc"
