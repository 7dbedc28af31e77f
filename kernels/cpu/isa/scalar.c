#define KT_LEVEL scalar
#define KT_PLAIN 1
#include "level.inc"
