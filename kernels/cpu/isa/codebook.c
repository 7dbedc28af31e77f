/* One copy of the code books for all ISA levels. */
#include "codebook.h"

#define KT_GRID const uint16_t
#include "kt_codebook.h"
