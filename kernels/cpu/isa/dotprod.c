#define KT_LEVEL dotprod
#include "level.inc"
