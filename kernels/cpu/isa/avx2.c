#define KT_LEVEL avx2
#include "level.inc"
