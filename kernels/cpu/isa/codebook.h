/* The code books of IQ1, IQ2 and IQ3, one copy for all ISA levels. */
#ifndef KT_CODEBOOK_H
#define KT_CODEBOOK_H
#include <stdint.h>

extern const uint16_t kt_grid_iq1[2048];
extern const uint16_t kt_grid_iq2_xxs[256], kt_grid_iq2_xs[512], kt_grid_iq2_s[1024];
extern const uint16_t kt_grid_iq3_xxs[256], kt_grid_iq3_s[512];
#endif
