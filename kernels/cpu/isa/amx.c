#define KT_LEVEL amx
#include "level.inc"
