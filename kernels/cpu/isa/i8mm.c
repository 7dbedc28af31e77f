#define KT_LEVEL i8mm
#include "level.inc"
