/* TCP sockets, as the store and the TCP wire use them. */
#ifndef WEFTI_TRANSPORT_SOCKET_H
#define WEFTI_TRANSPORT_SOCKET_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "core/base/base.h"

typedef struct wefti_socket_address {
    struct sockaddr_storage storage;
    socklen_t               bytes;
} wefti_socket_address;

/* Splits and resolves "host:port" ("[v6]:port"). May ask a name server, and so block. */
WEFT_MUST_CHECK weft_status wefti_socket_resolve(const char *text, wefti_socket_address *address_out);
bool     wefti_socket_is_loopback(const wefti_socket_address *address);
uint16_t wefti_socket_port(const wefti_socket_address *address);
void     wefti_socket_set_port(wefti_socket_address *address, uint16_t port);
/* "127.0.0.1:4711", by value. */
typedef struct wefti_socket_string { char text[80]; } wefti_socket_string;
wefti_socket_string wefti_socket_text(const wefti_socket_address *address);

/* What an interface that is named means: "eth0", an address, or a name of this host; the port is 0. Link-local addresses are not taken for
 * an interface. May ask a name server, and so block. WEFT_E_NOT_FOUND, with a list of those that there are; WEFT_E_LINK for one that is
 * down or has no address. */
WEFT_MUST_CHECK weft_status wefti_interface_find(const char *text, wefti_socket_address *address_out);
/* Whether it is an address of this host: WEFT_E_NOT_FOUND where not, with the list. */
WEFT_MUST_CHECK weft_status wefti_interface_check(const wefti_socket_address *address);
/* "lo (127.0.0.1, ::1), eth0 (10.0.0.7)", for errors. */
enum { WEFTI_INTERFACES_BYTES = 400 };
void wefti_interface_list(char *text_out, size_t bytes);

/* A listening non-blocking socket; port 0: any, put into *address. WEFT_E_EXISTS where the port is taken. */
WEFT_MUST_CHECK weft_status wefti_socket_listen(wefti_socket_address *address, int *socket_out);
/* Starts to connect: WEFT_OK with a non-blocking socket that becomes writable, WEFT_E_LINK where it is refused at once (errno
 * says why). */
WEFT_MUST_CHECK weft_status wefti_socket_dial(const wefti_socket_address *address, int *socket_out);
/* WEFT_OK: connected; WEFT_E_AGAIN; WEFT_E_LINK with the system's reason, in errno too. */
weft_status wefti_socket_connected(int socket);
/* What every connection wants: no delay, non-blocking, closed on exec. */
void wefti_socket_prepare(int socket);
/* A connection from a listener, or -1. */
int wefti_socket_accept(int listener);

#endif
