#include <espalier/core.h>
#include <stdio.h>

int main(void) { return printf("%s\n", esp_version()) < 0; }
