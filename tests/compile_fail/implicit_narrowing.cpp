// error: conversion from 'float' to non-scalar type 'flashmha::BFloat16' requested
// A narrow number is made on purpose, never by accident.
#include <flashmha/flashmha.h>

flashmha::BFloat16 narrow(float value) {
  flashmha::BFloat16 result = value;
  return result;
}
