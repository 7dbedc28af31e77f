#define KT_LEVEL neon
#include "level.inc"
