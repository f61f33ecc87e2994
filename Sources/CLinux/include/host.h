#ifndef CLINUX_HOST_H
#define CLINUX_HOST_H
#endif
