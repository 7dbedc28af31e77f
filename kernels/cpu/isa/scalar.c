#define KT_LEVEL scalar
#include "level.inc"
