#include <espalier/vector_math.h>

#ifndef ESP_DOUBLE
const float esp_exp_low = -87.33654f, esp_exp_high = 88.3762f;
#endif
